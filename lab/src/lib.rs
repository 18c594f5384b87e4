//! The lab: network namespaces, the links between them and the processes in them, made by this
//! process alone. The demonstration and the end-to-end tests are built on it.
//!
//! ```text
//!  Scene ──▶ Namespace ──▶ worker thread, living in the namespace: netlink, sysctl, child processes
//!        └─▶ Emulator  ──▶ wire thread: frames cross with delay, loss, a rate, or not at all
//! ```
//!
//! Nothing here has a name outside this process: a namespace is held by a file descriptor and by
//! the threads and processes inside it, so it vanishes with the last of them, however they end,
//! and with it its links, addresses and routes. There is nothing to clean up.
//!
//! Every call blocks until the kernel has done what was asked.

mod address;
pub mod emulator;
mod error;
pub mod etcd;
mod link;
mod namespace;
mod offload;
mod process;
mod route;
pub mod scene;
mod user_namespace;
mod worker;

pub use emulator::{Emulator, LinkShape};
pub use error::{Error, Result};
pub use link::veth;
pub use namespace::Namespace;
pub use process::{Process, cpu_seconds};
pub use scene::{Access, Scene};
pub use user_namespace::enter_user_namespace;
