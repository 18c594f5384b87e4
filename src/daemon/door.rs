//! Local sockets on which the daemon serves other programs, and a bound on their connections.

use std::{
    collections::VecDeque,
    convert::Infallible,
    fs, io,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::Path,
};

use tokio::{net::UnixListener, sync::oneshot};

/// Bounds the number of connections. A new connection beyond the bound replaces the oldest, so that idle
/// connections cannot keep others out.
#[derive(Debug)]
pub(crate) struct Door {
    places: VecDeque<oneshot::Sender<Infallible>>,
    most: usize,
}

/// The place of one connection; dropping it frees the place.
#[derive(Debug)]
pub(crate) struct Place(oneshot::Receiver<Infallible>);

impl Door {
    /// A door for at most `most` connections.
    #[must_use]
    pub(crate) fn new(most: usize) -> Self {
        Self { places: VecDeque::with_capacity(most), most }
    }

    /// Admits a connection and lets the replaced one end before the next is admitted.
    pub(crate) async fn enter(&mut self) -> Place {
        tokio::task::yield_now().await;
        self.take()
    }

    fn take(&mut self) -> Place {
        self.places.retain(|place| !place.is_closed());
        if self.places.len() >= self.most {
            self.places.pop_front();
        }
        let (place, taken) = oneshot::channel();
        self.places.push_back(place);
        Place(taken)
    }
}

impl Place {
    /// Returns when another connection takes the place. Cancel safe.
    pub(crate) async fn lost(&mut self) {
        let _ = (&mut self.0).await;
    }
}

/// Listens at `path` for the owner and its group only, in place of a socket that an earlier run left. Any other
/// file stays, and is an error; so is a socket that somebody has, of whatever type.
pub(crate) fn listen(path: &Path) -> io::Result<UnixListener> {
    let is_left = match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => return Err(io::ErrorKind::AddrInUse.into()),
        // A socket of another type that somebody has gives EPROTOTYPE.
        Err(error) => error.kind() == io::ErrorKind::ConnectionRefused,
    };
    if is_left && fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
        fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn a_socket_that_somebody_listens_to_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let first = listen(&path).unwrap();
        assert_eq!(listen(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(first);
        listen(&path).unwrap();
    }

    #[test]
    fn a_new_caller_replaces_only_the_oldest_one() {
        let mut door = Door::new(2);
        let mut first = door.take();
        let mut second = door.take();
        assert!(first.lost().now_or_never().is_none());
        let mut third = door.take();
        assert!(first.lost().now_or_never().is_some());
        assert!(second.lost().now_or_never().is_none());
        drop(second);
        let _fourth = door.take();
        assert!(third.lost().now_or_never().is_none(), "there was room");
    }

    #[tokio::test]
    async fn a_socket_of_another_type_that_somebody_has_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let other = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
        assert_eq!(listen(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let sender = std::os::unix::net::UnixDatagram::unbound().unwrap();
        sender.send_to(b"READY=1", &path).unwrap();
        assert_eq!(other.recv(&mut [0; 16]).unwrap(), 7);
    }

    #[tokio::test]
    async fn an_ordinary_file_in_the_sockets_place_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("diary");
        fs::write(&path, "dear diary").unwrap();
        assert_eq!(listen(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert_eq!(fs::read(&path).unwrap(), b"dear diary");
        fs::remove_file(&path).unwrap();
        drop(listen(&path).unwrap());
        drop(listen(&path).unwrap());
    }
}
