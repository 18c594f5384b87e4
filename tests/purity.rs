//! What the modules of `src` may import: the pure ones nothing that does I/O or reads a clock, and the rooms only
//! the rooms before them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use proc_macro2::{TokenStream, TokenTree};
use syn::{
    Attribute, ImplItem, Item, ItemMod, Macro, Stmt, UseTree,
    visit::{self, Visit},
};

/// Modules that turn values into values: who calls them hands them the time, and nothing they import can wait.
const PURE: &[&str] = &[
    "cli::text",
    "client::chance",
    "client::offer",
    "client::plan",
    "desktop::icon",
    "desktop::matters",
    "desktop::menu",
    "desktop::seen",
    "fleet::belief",
    "fleet::entry",
    "fleet::record",
    "fleet::tenure",
    "networkmanager::dialog",
    "networkmanager::secrets",
    "path::forgotten",
    "path::manager",
    "path::preference",
    "path::quality",
    "quic::congestion::delay",
    "quic::congestion::round_trip",
    "server::gate",
    "server::rivals",
    "server::socket::heard",
    "server::streams::standing",
    "tunnel::acks",
    "tunnel::chunks",
    "tunnel::counters",
    "tunnel::ecn",
    "tunnel::flow",
    "tunnel::inside",
    "tunnel::merge",
    "tunnel::pool",
    "tunnel::queue::codel",
    "tunnel::queue::fair",
    "tunnel::queue::list",
    "tunnel::queue::senders",
    "tunnel::queue::sizes",
    "tunnel::repair",
    "tunnel::split",
    "tunnel::vnet",
    "wire",
];

/// What a pure module may not name.
const IMPURE: &[&str] = &[
    "crate::clock",
    "crate::mutex",
    "netlink_sys",
    "nix::sys",
    "nix::unistd",
    "quinn",
    "rtnetlink",
    "socket2",
    "std::env",
    "std::fs",
    "std::io::stdin",
    "std::io::stdout",
    "std::net::TcpListener",
    "std::net::TcpStream",
    "std::net::UdpSocket",
    "std::os",
    "std::process",
    "std::sync::Condvar",
    "std::sync::Mutex",
    "std::thread",
    "std::time::SystemTime",
    "tokio",
    "tracing",
    "zbus",
];

/// The rooms: each may import those in the lines above its own, so that no arrows form a cycle. Two in one line do
/// not import each other.
const ROOMS: &[&[&str]] = &[
    &["clock"],
    &["task"],
    &["mutex"],
    &["identity"],
    &["wire"],
    &["quic"],
    &["tunnel"],
    &["link"],
    &["path"],
    &["host"],
    &["config"],
    &["daemon"],
    &["fleet"],
    &["client", "desktop", "server"],
    &["networkmanager"],
    &["cli"],
];

/// Arrows that run upwards all the same, and what for. This list only gets shorter.
const UPWARDS: &[(&str, &str, &str)] = &[
    ("quic", "config", "timeouts, DSCP and congestion control, in the configuration's own type"),
    ("path", "config", "preferences and the server's addresses, in the configuration's own types"),
    ("host", "config", "resolvers and exclusions, in the configuration's own types"),
];

/// A module: its name from the crate's root, such as `tunnel::queue`, and every path its code names, from the
/// crate's root or from another crate's.
#[derive(Default)]
struct Module {
    name: Vec<String>,
    paths: BTreeSet<String>,
}

/// Every module of the library but those of tests.
fn modules() -> Vec<Module> {
    let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    read(&source.join("lib.rs"), &source, Vec::new(), &mut found);
    assert!(found.len() > 100, "{} modules only", found.len());
    found
}

/// Reads a module's file, and those of the modules that it declares, which lie in `folder`.
fn read(file: &Path, folder: &Path, name: Vec<String>, found: &mut Vec<Module>) {
    let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{file:?}: {error}"));
    let code = syn::parse_file(&text).unwrap_or_else(|error| panic!("{file:?}: {error}"));
    let mut reader =
        Reader { module: Module { name, ..Module::default() }, inside: 0, files: Vec::new() };
    reader.visit_file(&code);
    for child in reader.files {
        let (file, folder) = (folder.join(format!("{child}.rs")), folder.join(&child));
        read(&file, &folder, [reader.module.name.clone(), vec![child]].concat(), found);
    }
    found.push(reader.module);
}

struct Reader {
    module: Module,
    /// How many modules of this file lie around what is read.
    inside: usize,
    /// The modules with files of their own.
    files: Vec<String>,
}

impl Reader {
    /// Notes a path as it is written, and resolves `self` and `super`.
    fn note(&mut self, path: &[String]) {
        let name = &self.module.name;
        let up = path.iter().take_while(|part| *part == "super").count();
        let rest = &path[up..];
        let from_root = match path.first().map(String::as_str) {
            // Within a module of this file, `super` may still be this file's module.
            Some("super") => {
                let Some(left) = (name.len() + self.inside).checked_sub(up) else { return };
                ["crate".to_owned()]
                    .iter()
                    .chain(&name[..left.min(name.len())])
                    .chain(rest)
                    .cloned()
                    .collect()
            }
            Some("self") => {
                ["crate".to_owned()].iter().chain(name).chain(&path[1..]).cloned().collect()
            }
            _ => path.to_vec(),
        };
        self.module.paths.insert(from_root.join("::"));
    }

    fn note_use(&mut self, tree: &UseTree, mut before: Vec<String>) {
        match tree {
            UseTree::Path(path) => {
                before.push(path.ident.to_string());
                self.note_use(&path.tree, before);
            }
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.note_use(tree, before.clone());
                }
            }
            UseTree::Name(name) => {
                before.push(name.ident.to_string());
                self.note(&before);
            }
            UseTree::Rename(name) => {
                before.push(name.ident.to_string());
                self.note(&before);
            }
            UseTree::Glob(_) => self.note(&before),
        }
    }

    /// The paths among a macro's arguments.
    fn note_tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(ident) => {
                    if colons != 2 {
                        self.note_long(&std::mem::take(&mut path));
                    }
                    path.push(ident.to_string());
                    colons = 0;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                TokenTree::Group(group) => {
                    self.note_long(&std::mem::take(&mut path));
                    self.note_tokens(group.stream());
                    colons = 0;
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => {
                    self.note_long(&std::mem::take(&mut path));
                    colons = 0;
                }
            }
        }
        self.note_long(&path);
    }

    /// A single word among a macro's arguments is no path.
    fn note_long(&mut self, path: &[String]) {
        if path.len() > 1 {
            self.note(path);
        }
    }
}

/// Whether it is there in tests alone.
fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|it| {
        let cfg = it.path().is_ident("cfg")
            && it.parse_args::<syn::Path>().is_ok_and(|it| it.is_ident("test"));
        cfg || it.path().is_ident("test")
    })
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(it) => &it.attrs,
        Item::Enum(it) => &it.attrs,
        Item::Fn(it) => &it.attrs,
        Item::Impl(it) => &it.attrs,
        Item::Macro(it) => &it.attrs,
        Item::Mod(it) => &it.attrs,
        Item::Static(it) => &it.attrs,
        Item::Struct(it) => &it.attrs,
        Item::Trait(it) => &it.attrs,
        Item::Type(it) => &it.attrs,
        Item::Use(it) => &it.attrs,
        _ => &[],
    }
}

impl<'ast> Visit<'ast> for Reader {
    fn visit_item(&mut self, item: &'ast Item) {
        if !is_for_tests(attributes(item)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item(&mut self, item: &'ast ImplItem) {
        let is_for_tests = match item {
            ImplItem::Const(it) => is_for_tests(&it.attrs),
            ImplItem::Fn(it) => is_for_tests(&it.attrs),
            _ => false,
        };
        if !is_for_tests {
            visit::visit_impl_item(self, item);
        }
    }

    fn visit_stmt(&mut self, statement: &'ast Stmt) {
        let is_for_tests = matches!(statement, Stmt::Local(it) if is_for_tests(&it.attrs));
        if !is_for_tests {
            visit::visit_stmt(self, statement);
        }
    }

    fn visit_item_mod(&mut self, module: &'ast ItemMod) {
        if module.content.is_none() {
            self.files.push(module.ident.to_string());
        }
        self.inside += 1;
        visit::visit_item_mod(self, module);
        self.inside -= 1;
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.note_use(&item.tree, Vec::new());
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let parts: Vec<_> = path.segments.iter().map(|it| it.ident.to_string()).collect();
        self.note_long(&parts);
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, it: &'ast Macro) {
        visit::visit_macro(self, it);
        self.note_tokens(it.tokens.clone());
    }

    /// Documentation may name what the code does not.
    fn visit_attribute(&mut self, _: &'ast Attribute) {}
}

fn is_within(path: &str, outer: &str) -> bool {
    path.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

#[test]
fn pure_modules_name_no_input_no_output_and_no_clock() {
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for Module { name, paths } in modules() {
        let name = name.join("::");
        let Some(pure) = PURE.iter().find(|pure| is_within(&name, pure)) else { continue };
        seen.insert(*pure);
        for path in &paths {
            // It holds a time that somebody else read.
            let holds_a_time = is_within(path, "crate::clock::AtomicInstant");
            let impure = !holds_a_time && IMPURE.iter().any(|impure| is_within(path, impure));
            if impure || path.ends_with("Instant::now") {
                wrong.push(format!("{name} names {path}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(seen, PURE.iter().copied().collect(), "a pure module is gone or has another name");
}

#[test]
fn rooms_import_only_the_rooms_before_them() {
    let place = |room: &str| ROOMS.iter().position(|line| line.contains(&room));
    let mut upwards = BTreeMap::<_, BTreeSet<_>>::new();
    for Module { name, paths } in modules() {
        // The root, what it shows to tests and benches, and the fuzz targets lie outside of the rooms.
        let Some(from) =
            name.first().filter(|room| !["internals", "fuzz"].contains(&room.as_str()))
        else {
            continue;
        };
        let own = place(from).unwrap_or_else(|| panic!("{from} is none of the rooms"));
        for path in &paths {
            let mut parts = path.split("::");
            let Some(to) = parts.next().filter(|it| *it == "crate").and_then(|_| parts.next())
            else {
                continue;
            };
            if to != from && place(to).is_some_and(|other| other >= own) {
                let arrow = (from.clone(), to.to_owned());
                upwards.entry(arrow).or_default().insert(format!("{} -> {path}", name.join("::")));
            }
        }
    }
    let known = |(from, to): &(String, String)| UPWARDS.iter().any(|it| it.0 == from && it.1 == to);
    let new: Vec<_> = upwards.iter().filter(|(arrow, _)| !known(arrow)).collect();
    assert!(new.is_empty(), "these arrows run upwards: {new:#?}");
    let gone: Vec<_> = UPWARDS
        .iter()
        .filter(|(from, to, _)| !upwards.contains_key(&((*from).into(), (*to).into())))
        .collect();
    assert!(gone.is_empty(), "take them out of UPWARDS, they are gone: {gone:?}");
}
