//! What people call a tunnel whose name is none for people: the file `NAME.label` beside its control socket.

use std::{
    fs::File,
    io::{self, Read as _},
};

use super::{file::single, instance::Instance};
use crate::wire::foreign::printable;

const SUFFIX: &str = "label";
/// The longest that is written, in characters, and read, in bytes.
const LONGEST: usize = 64;
const MOST: u64 = 1024;

impl Instance {
    /// Has people call it so. A label has no slash: what has one is a file.
    #[cfg(feature = "networkmanager")]
    pub(crate) fn set_label(&self, label: &str) -> io::Result<()> {
        use std::{fs, io::Write as _, os::unix::fs::OpenOptionsExt as _};
        let path = self.file(SUFFIX);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut options = File::options();
        // Whoever may ask the daemon may know.
        let mut file = single(options.write(true).create(true).truncate(false).mode(0o640), &path)?;
        file.set_len(0)?;
        file.write_all(printable(&label.replace('/', "-"), LONGEST).as_bytes())
    }

    /// What people call it.
    #[must_use]
    pub(crate) fn title(&self) -> String {
        self.label().unwrap_or_else(|_| self.name().into())
    }

    /// Those of the same directory that people call so.
    pub(crate) fn labelled(&self, label: &str) -> Vec<Self> {
        let mut all = self.beside(SUFFIX);
        all.retain(|it| it.label().is_ok_and(|its| its == label));
        all
    }

    fn label(&self) -> io::Result<String> {
        let mut label = String::new();
        let file = single(&mut File::options(), &self.file(SUFFIX))?;
        file.take(MOST).read_to_string(&mut label)?;
        match label.is_empty() {
            true => Err(io::ErrorKind::InvalidData.into()),
            false => Ok(printable(&label, LONGEST)),
        }
    }
}

#[cfg(all(test, feature = "networkmanager"))]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn people_call_a_tunnel_by_its_label() {
        let folder = tempfile::tempdir().unwrap();
        let [one, other] = ["nm+1", "nm+2"].map(|name| Instance::within(folder.path(), name));
        assert_eq!(one.title(), "nm+1");
        one.set_label("a long name for home").unwrap();
        one.set_label("Büro 2/1\u{1b}[2J").unwrap();
        other.set_label("home").unwrap();
        assert_eq!(one.title(), "Büro 2-1\\u{1b}[2J");
        assert_eq!(one.labelled("home"), std::slice::from_ref(&other));
        assert_eq!(one.labelled(&one.title()), std::slice::from_ref(&one));
        assert_eq!(one.labelled("nm+1"), []);
        // Neither a link nor a pipe is read.
        fs::remove_file(other.file(SUFFIX)).unwrap();
        std::os::unix::fs::symlink(one.file(SUFFIX), other.file(SUFFIX)).unwrap();
        assert_eq!(other.title(), "nm+2");
        assert!(other.set_label("x").is_err());
    }
}
