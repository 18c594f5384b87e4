//! Parameters of the kernel's network (Documentation/networking/ip-sysctl.rst).

use std::{fs, io, path::PathBuf};

use tracing::{debug, warn};

/// Parameters that were changed, with what they were before.
#[derive(Debug, Default)]
pub struct Sysctls(Vec<(String, String)>);

impl Sysctls {
    /// Sets `net.NAME` (with `/` for `.`), and remembers what it was.
    pub fn set(&mut self, name: &str, value: &str) -> io::Result<()> {
        let before = read(name)?;
        if before != value {
            debug!(name, before, value, "setting a kernel parameter");
            fs::write(path(name), value)?;
            self.0.push((name.into(), before));
        }
        Ok(())
    }

    /// Gives everything its former value.
    pub fn restore(&mut self) {
        for (name, before) in self.0.drain(..).rev() {
            if let Err(error) = fs::write(path(&name), before) {
                warn!(%error, name, "can't reset a kernel parameter");
            }
        }
    }
}

/// The value of `net.NAME`.
pub fn read(name: &str) -> io::Result<String> {
    let value = fs::read_to_string(path(name));
    value.map(|value| value.trim().to_owned()).map_err(|error| {
        io::Error::new(error.kind(), format!("kernel parameter net/{name}: {error}"))
    })
}

/// Sets `net.NAME` for good.
pub fn write(name: &str, value: &str) -> io::Result<()> {
    fs::write(path(name), value).map_err(|error| {
        io::Error::new(error.kind(), format!("kernel parameter net/{name}: {error}"))
    })
}

/// The links that have parameters of their own, and `all`.
pub fn links() -> io::Result<Vec<String>> {
    let entries = fs::read_dir(path("ipv4/conf"))?;
    Ok(entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

fn path(name: &str) -> PathBuf {
    PathBuf::from("/proc/sys/net").join(name)
}
