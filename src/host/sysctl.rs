//! Parameters of the kernel's network (Documentation/networking/ip-sysctl.rst).

use std::{fs, io, path::PathBuf};

use tracing::{debug, warn};

use super::record::{Parameter, Record};

/// Parameters that were changed; what they were before is in the record, and outlives the daemon there.
#[derive(Debug)]
pub(crate) struct Sysctls(Record);

impl Sysctls {
    /// What the record says was changed, perhaps by an earlier run.
    #[must_use]
    pub(crate) fn new(record: Record) -> Self {
        Self(record)
    }

    /// Sets `net.NAME` (with `/` for `.`), and remembers what it was.
    pub(crate) fn set(&self, name: &str, value: &str) -> io::Result<()> {
        let before = read(name)?;
        if before == value {
            return Ok(());
        }
        debug!(name, before, value, "setting a kernel parameter");
        self.0.update(|changes| {
            let parameter = changes
                .sysctls
                .entry(name.into())
                .or_insert(Parameter { before, set: String::new() });
            parameter.set = value.into();
        });
        fs::write(path(name), value)
    }

    /// Gives everything its former value, unless somebody has changed it since.
    pub(crate) fn restore(&self) {
        for (name, Parameter { before, set }) in self.0.changes().sysctls.into_iter().rev() {
            let restored = match read(&name) {
                Ok(value) if value == set => fs::write(path(&name), before),
                Ok(_) => Ok(()),
                Err(error) => Err(error),
            };
            if let Err(error) = restored {
                warn!(%error, name, "cannot reset a kernel parameter");
            }
            self.0.update(|changes| _ = changes.sysctls.remove(&name));
        }
    }
}

/// Whether this is the name of a parameter that roamd sets, or that an earlier version did.
pub(super) fn is_ours(name: &str) -> bool {
    let of_link = name.strip_prefix("ipv6/conf/").and_then(|rest| rest.strip_suffix("/accept_ra"));
    match name {
        "ipv4/ip_forward" | "ipv4/conf/all/src_valid_mark" | "ipv6/conf/all/forwarding" => true,
        _ => of_link.is_some_and(|link| !link.contains('/') && !matches!(link, "" | "." | "..")),
    }
}

/// The value of `net.NAME`.
pub(crate) fn read(name: &str) -> io::Result<String> {
    let value = fs::read_to_string(path(name));
    value.map(|value| value.trim().to_owned()).map_err(|error| {
        io::Error::new(error.kind(), format!("kernel parameter net/{name}: {error}"))
    })
}

/// Sets `net.NAME` for good.
pub(crate) fn write(name: &str, value: &str) -> io::Result<()> {
    fs::write(path(name), value).map_err(|error| {
        io::Error::new(error.kind(), format!("kernel parameter net/{name}: {error}"))
    })
}

/// The links that have parameters of their own, and `all`.
pub(crate) fn links() -> io::Result<Vec<String>> {
    let entries = fs::read_dir(path("ipv4/conf"))?;
    Ok(entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

fn path(name: &str) -> PathBuf {
    PathBuf::from("/proc/sys/net").join(name)
}
