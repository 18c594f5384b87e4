//! Parameters of the kernel's network (Documentation/networking/ip-sysctl.rst).

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use tracing::{debug, warn};

use super::record::{Parameter, Record};

/// Where the parameters are.
const NET: &str = "/proc/sys/net";

/// Whether the kernel has IPv6 (`ipv6.disable=1` of Documentation/admin-guide/kernel-parameters.rst takes it away).
#[must_use]
pub(super) fn has_ipv6() -> bool {
    Path::new(NET).join("ipv6").exists()
}

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

    /// Gives everything its former value, unless somebody has changed it since. What cannot be reset stays in the record.
    pub(crate) fn restore(&self) {
        self.restore_in(Path::new(NET));
    }

    fn restore_in(&self, net: &Path) {
        for (name, Parameter { before, set }) in self.0.changes().sysctls.into_iter().rev() {
            let path = net.join(&name);
            let restored = match read_at(&path) {
                Ok(value) if value == set => fs::write(&path, before),
                Ok(_) => Ok(()),
                Err(error) => Err(error),
            };
            match restored {
                Ok(()) => {}
                // The link is gone, and with it its parameters.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    warn!(%error, name, "cannot reset a kernel parameter");
                    continue;
                }
            }
            self.0.update(|changes| _ = changes.sysctls.remove(&name));
        }
    }
}

/// Whether this is the name of a parameter that roamd sets.
pub(super) fn is_ours(name: &str) -> bool {
    let of_link = name.strip_prefix("ipv6/conf/").and_then(|rest| rest.strip_suffix("/accept_ra"));
    match name {
        "ipv4/ip_forward" | "ipv6/conf/all/forwarding" => true,
        _ => of_link.is_some_and(|link| !link.contains('/') && !matches!(link, "" | "." | "..")),
    }
}

/// The value of `net.NAME`.
pub(crate) fn read(name: &str) -> io::Result<String> {
    read_at(&path(name)).map_err(|error| {
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

fn read_at(path: &Path) -> io::Result<String> {
    Ok(fs::read_to_string(path)?.trim().to_owned())
}

fn path(name: &str) -> PathBuf {
    Path::new(NET).join(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::instance::Instance;

    #[test]
    fn what_cannot_be_reset_stays_in_the_record_and_what_needs_no_reset_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let record = Record::open(&Instance::within(folder.path(), "home")).unwrap();
        let names = ["ours", "changed-since", "gone", "stuck"];
        record.update(|changes| {
            let parameter = Parameter { before: "0".into(), set: "1".into() };
            changes.sysctls = names.map(|it| (it.to_owned(), parameter.clone())).into();
        });
        let net = tempfile::tempdir().unwrap();
        fs::write(net.path().join("ours"), "1\n").unwrap();
        fs::write(net.path().join("changed-since"), "2\n").unwrap();
        // Not even root can read or write it.
        fs::create_dir(net.path().join("stuck")).unwrap();
        Sysctls::new(record.clone()).restore_in(net.path());
        assert_eq!(record.changes().sysctls.into_keys().collect::<Vec<_>>(), ["stuck"]);
        let value = |name| fs::read_to_string(net.path().join(name)).unwrap();
        assert_eq!((value("ours"), value("changed-since")), ("0".into(), "2\n".into()));
    }
}
