//! Whether etcd answers, and what it has.

use super::finding::Finding;
use crate::{config, fleet::admin::Directory, wire::foreign::Foreign};

const SUBJECT: &str = "directory";

pub(super) async fn examine(config: &config::Directory, tell: &mut dyn FnMut(Finding)) {
    let etcd = &config.etcd;
    let prefix = &etcd.prefix;
    let (peers, passed_over) = match Directory::new(etcd).list().await {
        Ok(listed) => listed,
        Err(error) => {
            let why = Foreign::from(format!("{error:#}").as_str());
            let endpoints = etcd.endpoints.join(", ");
            return tell(Finding::bad(
                SUBJECT,
                format!("etcd does not tell what is below {prefix}: {why}"),
                format!(
                    "look at etcd at {endpoints}; a server that runs goes on with what it knows"
                ),
            ));
        }
    };
    let known = format!("etcd answers, {} may connect", peers.len());
    tell(if peers.is_empty() {
        let advice = "roamd peer add PEER --directory lets one in; see to it that all servers have the same prefix";
        Finding::poor(SUBJECT, format!("etcd answers, and has no peers below {prefix}"), advice)
    } else {
        Finding::good(SUBJECT, known)
    });
    for record in passed_over {
        let (record, why) = (record.record, record.reason);
        tell(Finding::poor(
            SUBJECT,
            format!("the record {record} is not used: {why}"),
            "roamd peer remove --directory takes it out, by this name",
        ));
    }
}
