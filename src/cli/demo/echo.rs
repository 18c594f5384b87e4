//! The far end of the session: whatever comes is sent back, as a terminal does.

use std::{
    io::{Read, Write},
    net::{Ipv6Addr, Shutdown, TcpListener, TcpStream},
    os::fd::AsRawFd,
    sync::Arc,
    thread,
};

use nix::sys::socket;

use roamd_lab::Namespace;

use crate::mutex::Mutex;

/// An echo server in a namespace, reachable at each of its addresses. Dropped, it stops.
#[derive(Debug)]
pub(super) struct EchoServer {
    listener: TcpListener,
    connections: Arc<Mutex<Vec<TcpStream>>>,
}

impl EchoServer {
    /// Starts to listen on a port of the kernel's choice.
    pub(super) fn start(namespace: &Namespace) -> anyhow::Result<Self> {
        let listener = namespace.run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)))??;
        let connections = Arc::<Mutex<Vec<TcpStream>>>::default();
        let (incoming, accepted) = (listener.try_clone()?, Arc::clone(&connections));
        thread::Builder::new().name("echo".to_owned()).spawn(move || {
            while let Ok((connection, _)) = incoming.accept() {
                let Ok(handle) = connection.try_clone() else { return };
                accepted.lock().push(handle);
                thread::spawn(move || echo(connection));
            }
        })?;
        Ok(Self { listener, connections })
    }

    pub(super) fn port(&self) -> anyhow::Result<u16> {
        Ok(self.listener.local_addr()?.port())
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        // A listener that is shut down ends the accept that waits on it.
        let _ = socket::shutdown(self.listener.as_raw_fd(), socket::Shutdown::Both);
        for connection in &*self.connections.lock() {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

fn echo(mut connection: TcpStream) {
    let _ = connection.set_nodelay(true);
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = connection.read(&mut buffer) {
        if connection.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
}
