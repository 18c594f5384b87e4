//! A service manager that only listens: what sd_notify(3) tells it, message by message.

use std::{
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

/// Listens until the test ends.
pub(crate) struct Manager {
    path: PathBuf,
    messages: Arc<Mutex<Vec<String>>>,
}

impl Manager {
    pub(crate) fn new(folder: &Path) -> Self {
        let path = folder.join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let messages = Arc::<Mutex<Vec<String>>>::default();
        let heard = messages.clone();
        std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while let Ok(length) = socket.recv(&mut buffer) {
                let message = String::from_utf8_lossy(&buffer[..length]).into_owned();
                heard.lock().unwrap().push(message);
            }
        });
        Self { path, messages }
    }

    /// What a daemon needs in its environment.
    pub(crate) fn variables(&self) -> [(&str, &str); 1] {
        [("NOTIFY_SOCKET", self.path.to_str().unwrap())]
    }

    /// All assignments so far.
    pub(crate) fn assignments(&self) -> Vec<String> {
        let messages = self.messages.lock().unwrap();
        messages.iter().flat_map(|it| it.lines().map(str::to_owned)).collect()
    }
}
