//! roamd.toml(5): docs/configuration.md, and the examples of config/.

use std::{fs, path::Path};

use super::{markdown, page::Page};

pub(crate) fn page(root: &Path, folder: &Path) -> anyhow::Result<()> {
    let mut page = Page::new("roamd.toml", "5", "configuration of a roamd tunnel");
    page.section("SYNOPSIS", &["/etc/roamd/NAME.toml"]);
    page.heading("DESCRIPTION");
    markdown::append(&fs::read_to_string(root.join("docs/configuration.md"))?, &mut page);
    page.heading("EXAMPLES");
    for (file, about) in [("client.toml", "A client:"), ("server.toml", "A server:")] {
        page.paragraph(about);
        page.verbatim(&fs::read_to_string(root.join("config").join(file))?);
    }
    page.section("FILES", &[]);
    page.term("/usr/share/doc/roamd/", "The documents that this page names, and examples.");
    page.see_also([
        ("roamd", "8"),
        ("roamd-check", "8"),
        ("roamd-reload", "8"),
        ("ip-rule", "8"),
        ("nft", "8"),
    ]);
    Ok(page.write(folder)?)
}
