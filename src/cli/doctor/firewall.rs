//! Whether this host's own firewall lets a client's first packet in, as far as its rules tell.
//!
//! The rules are followed as the kernel does for a new UDP datagram to the server's port from another host, or for the first
//! segment of a TCP connection.
//! A match that this program does not know may hold or not, and so may the rule.

use serde_json::Value;

use crate::link::candidate::Transport;

/// Maximum depth of jumps; the kernel has the same limit (NFT_JUMP_STACK_SIZE).
const DEEPEST: usize = 16;

/// What becomes of a first packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Nothing drops it.
    Accepted,
    /// This chain drops it.
    Dropped(String),
    /// This chain may drop it.
    Unclear(String),
}

/// What becomes of a first packet to `port` of a host with these rules.
pub(super) fn fate(ruleset: &Value, transport: Transport, port: u16) -> Fate {
    let all = ruleset["nftables"].as_array().map_or(&[][..], Vec::as_slice);
    let rules = Rules { all, protocol: transport.to_string(), port };
    let mut chains: Vec<_> = rules.of_kind("chain").filter(|it| it["hook"] == "input").collect();
    chains.sort_by_key(|chain| chain["prio"].as_i64());
    let mut unclear = None;
    for chain in chains {
        let (walked, doubt) = rules.walk(chain, 0);
        let drops = match walked {
            Walk::Accept => false,
            Walk::Drop => true,
            Walk::End => chain["policy"] == "drop",
        };
        match (drops, doubt) {
            // What other chains accept is of no use here.
            (true, None | Some(Walk::Drop | Walk::End)) => return Fate::Dropped(name(chain)),
            (true, Some(Walk::Accept)) | (false, Some(Walk::Drop)) => {
                unclear.get_or_insert_with(|| name(chain));
            }
            (false, None | Some(Walk::Accept | Walk::End)) => {}
        }
    }
    unclear.map_or(Fate::Accepted, Fate::Unclear)
}

/// The chains that drop what is forwarded unless a rule lets it through.
pub(super) fn forward_drops(ruleset: &Value) -> Vec<String> {
    let all = ruleset["nftables"].as_array().map_or(&[][..], Vec::as_slice);
    let chains = all.iter().filter_map(|entry| entry.get("chain"));
    let drops = chains.filter(|it| it["hook"] == "forward" && it["policy"] == "drop");
    drops.map(name).collect()
}

/// A chain's family, table and name, as nft(8) takes them.
fn name(chain: &Value) -> String {
    format!("{} {} {}", text(chain, "family"), text(chain, "table"), text(chain, "name"))
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

struct Rules<'a> {
    all: &'a [Value],
    /// As nft names it.
    protocol: String,
    port: u16,
}

/// How the way through a chain ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Walk {
    Accept,
    Drop,
    /// Behind its last rule, or back where it was called.
    End,
}

impl<'a> Rules<'a> {
    fn of_kind(&self, kind: &'a str) -> impl Iterator<Item = &'a Value> {
        self.all.iter().filter_map(move |entry| entry.get(kind))
    }

    /// Follows the rules of a chain; also gives the first verdict that may come before that end.
    fn walk(&self, chain: &Value, depth: usize) -> (Walk, Option<Walk>) {
        let is_in = |rule: &&Value| {
            rule["family"] == chain["family"]
                && rule["table"] == chain["table"]
                && rule["chain"] == chain["name"]
        };
        let mut doubt = None;
        for rule in self.of_kind("rule").filter(is_in) {
            let expressions = rule["expr"].as_array().map_or(&[][..], Vec::as_slice);
            let mut holds = Some(true);
            for expression in expressions {
                if let Some(condition) = expression.get("match") {
                    match self.matches(condition, chain) {
                        Some(false) => holds = Some(false),
                        None if holds == Some(true) => holds = None,
                        Some(true) | None => {}
                    }
                }
                // iptables-nft(8) has matches of its own that nft cannot show.
                if expression.get("xt").is_some() && holds == Some(true) {
                    holds = None;
                }
            }
            if holds == Some(false) {
                continue;
            }
            let Some((end, within)) =
                expressions.iter().find_map(|it| self.verdict(it, chain, depth))
            else {
                continue;
            };
            doubt = doubt.or(within);
            match end {
                Walk::End => {}
                end if holds == Some(true) => return (end, doubt),
                end => doubt = doubt.or(Some(end)),
            }
        }
        (Walk::End, doubt)
    }

    fn verdict(
        &self,
        expression: &Value,
        chain: &Value,
        depth: usize,
    ) -> Option<(Walk, Option<Walk>)> {
        let (kind, detail) = expression.as_object()?.iter().next()?;
        match kind.as_str() {
            "accept" => Some((Walk::Accept, None)),
            "drop" | "reject" => Some((Walk::Drop, None)),
            // A verdict map: which of its verdicts counts is not known.
            "vmap" => Some((Walk::End, Some(Walk::Drop))),
            "jump" | "goto" if depth < DEEPEST => {
                let called = self.of_kind("chain").find(|it| {
                    it["family"] == chain["family"]
                        && it["table"] == chain["table"]
                        && it["name"] == detail["target"]
                });
                called.map(|called| self.walk(called, depth + 1))
            }
            _ => None,
        }
    }

    /// Whether a condition holds for the datagram, if this program knows it.
    fn matches(&self, condition: &Value, chain: &Value) -> Option<bool> {
        let (left, right) = (&condition["left"], &condition["right"]);
        let known = if let Some(payload) = left.get("payload") {
            match (text(payload, "protocol"), text(payload, "field")) {
                ("th", "dport") => self.has_port(right, chain),
                (protocol, "dport") if protocol == self.protocol => self.has_port(right, chain),
                (protocol @ ("udp" | "tcp" | "icmp" | "icmpv6" | "sctp"), _)
                    if protocol != self.protocol =>
                {
                    return Some(false);
                }
                _ => None,
            }
        } else if let Some(meta) = left.get("meta") {
            match text(meta, "key") {
                "l4proto" => Some(has_word(right, &self.protocol)),
                "iif" | "iifname" if has_word(right, "lo") => Some(false),
                _ => None,
            }
        } else if left.get("ct").is_some_and(|ct| ct["key"] == "state") {
            Some(has_word(right, "new"))
        } else {
            None
        };
        known.map(|holds| holds != (condition["op"] == "!="))
    }

    /// Whether the port is among these.
    fn has_port(&self, among: &Value, chain: &Value) -> Option<bool> {
        match among {
            Value::Number(number) => Some(number.as_u64() == Some(self.port.into())),
            Value::String(name) => {
                let set = self.of_kind("set").find(|set| {
                    Some(text(set, "name")) == name.strip_prefix('@')
                        && set["family"] == chain["family"]
                        && set["table"] == chain["table"]
                })?;
                self.is_listed(set["elem"].as_array().map_or(&[], Vec::as_slice), chain)
            }
            Value::Array(listed) => self.is_listed(listed, chain),
            _ => match (among.get("range"), among.get("set")) {
                (Some(range), _) => {
                    let bounds = range[0].as_u64()?..=range[1].as_u64()?;
                    Some(bounds.contains(&self.port.into()))
                }
                (_, Some(set)) => self.has_port(set, chain),
                _ => None,
            },
        }
    }

    fn is_listed(&self, listed: &[Value], chain: &Value) -> Option<bool> {
        let mut all_known = true;
        for one in listed {
            match self.has_port(one, chain) {
                Some(true) => return Some(true),
                Some(false) => {}
                None => all_known = false,
            }
        }
        all_known.then_some(false)
    }
}

/// Whether a value is this word, or has it among others.
fn has_word(value: &Value, word: &str) -> bool {
    match value {
        Value::String(one) => one == word,
        Value::Array(several) => several.iter().any(|one| has_word(one, word)),
        Value::Object(map) => map.get("set").is_some_and(|set| has_word(set, word)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const PORT: u16 = 4433;

    fn port(among: Value) -> Value {
        json!({"match": {"op": "==", "left": {"payload": {"protocol": "udp", "field": "dport"}}, "right": among}})
    }

    fn established() -> Value {
        json!({"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["established", "related"]}})
    }

    fn from(network: &str) -> Value {
        json!({"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}}, "right": network}})
    }

    fn accept() -> Value {
        json!({"accept": null})
    }

    fn drop() -> Value {
        json!({"drop": null})
    }

    /// The fate under an input chain with this policy and these rules, and a chain `other`.
    fn under(policy: &str, rules: &[Vec<Value>], other: &[Vec<Value>]) -> Fate {
        let table = |name: &str| json!({"family": "inet", "table": "filter", "name": name});
        let mut base = table("input");
        base["hook"] = "input".into();
        base["prio"] = 0.into();
        base["policy"] = policy.into();
        let mut all = vec![json!({"chain": base}), json!({"chain": table("other")})];
        all.push(json!({"set": {"family": "inet", "table": "filter", "name": "ports", "elem": [22, {"range": [4000, 4500]}]}}));
        for (chain, rules) in [("input", rules), ("other", other)] {
            for expr in rules {
                all.push(json!({"rule": {"family": "inet", "table": "filter", "chain": chain, "expr": expr}}));
            }
        }
        fate(&json!({"nftables": all}), Transport::Udp, PORT)
    }

    fn dropped() -> Fate {
        Fate::Dropped("inet filter input".into())
    }

    fn unclear() -> Fate {
        Fate::Unclear("inet filter input".into())
    }

    #[test]
    fn a_firewall_without_rules_accepts_everything() {
        assert_eq!(fate(&json!({"nftables": []}), Transport::Udp, PORT), Fate::Accepted);
        assert_eq!(under("accept", &[], &[]), Fate::Accepted);
    }

    #[test]
    fn a_policy_of_drop_needs_a_rule_for_the_port() {
        let others = [vec![established(), accept()], vec![port(json!(53)), accept()]];
        assert_eq!(under("drop", &others, &[]), dropped());
        for among in [
            json!(PORT),
            json!({"set": [53, PORT]}),
            json!({"range": [4000, 5000]}),
            json!({"set": [53, {"range": [4433, 4434]}]}),
            json!("@ports"),
        ] {
            assert_eq!(under("drop", &[vec![port(among), accept()]], &[]), Fate::Accepted);
        }
    }

    #[test]
    fn a_rule_that_drops_the_port_is_found_also_behind_a_jump() {
        let dropping = [vec![port(json!(PORT)), json!({"counter": {}}), drop()]];
        assert_eq!(under("accept", &dropping, &[]), dropped());
        let jump = [vec![json!({"jump": {"target": "other"}})]];
        assert_eq!(under("accept", &jump, &dropping), dropped());
        assert_eq!(under("accept", &jump, &[vec![port(json!(53)), drop()]]), Fate::Accepted);
    }

    #[test]
    fn an_unknown_match_leaves_the_verdict_unclear() {
        let ours = vec![from("192.0.2.0/24"), port(json!(PORT)), accept()];
        assert_eq!(under("drop", &[ours], &[]), unclear());
        assert_eq!(under("accept", &[vec![from("192.0.2.0/24"), drop()]], &[]), unclear());
        let foreign = vec![from("192.0.2.0/24"), port(json!(53)), drop()];
        assert_eq!(under("accept", &[foreign], &[]), Fate::Accepted);
    }

    #[test]
    fn a_rule_for_one_transport_says_nothing_of_the_other() {
        let table = json!({"family": "inet", "table": "filter", "name": "input", "hook": "input",
            "prio": 0, "policy": "drop"});
        let rule = json!({"family": "inet", "table": "filter", "chain": "input",
            "expr": [port(json!(PORT)), accept()]});
        let rules = json!({"nftables": [{"chain": table}, {"rule": rule}]});
        assert_eq!(fate(&rules, Transport::Udp, PORT), Fate::Accepted);
        assert_eq!(fate(&rules, Transport::Tcp, PORT), dropped());
    }

    #[test]
    fn chains_that_jump_to_each_other_do_not_loop_for_ever() {
        let back = [vec![json!({"jump": {"target": "other"}})]];
        assert_eq!(under("accept", &back, &back), Fate::Accepted);
    }
}
