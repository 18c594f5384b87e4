//! Emulates a real link: it delays, loses and queues frames, and can go silent.
//!
//! A thread copies Ethernet frames between two links of a namespace, as a wire would, through a packet socket on
//! each. `line`, which is pure, decides what happens to a frame; `wire` is the thread.
//!
//! ```text
//!  namespace a            the emulator's own              namespace b
//!  ───────────            ───────────────────             ───────────
//!  wifi0 ◀══veth══▶ left ─▶ line (left to right) ─▶ right ◀══veth══▶ uplink
//!                   left ◀─ line (right to left) ◀─ right
//! ```

mod line;
mod random;
mod shape;
mod socket;
mod wire;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::{line::Line, socket::PacketSocket, wire::Wire};
use super::{
    error::{Error, Result},
    link::veth,
    namespace::Namespace,
};
pub use line::Counters;
pub use shape::{Direction, LinkShape, Side};

/// The names of the emulator's ends in its own namespace.
const LEFT: &str = "left";
const RIGHT: &str = "right";

/// The lines of both directions, shared between the thread and the handle. A change under the lock holds for every
/// frame that follows.
type Lines = Arc<Mutex<[Line; 2]>>;

/// A handle of an emulated link, which lasts as long as the handle.
#[derive(Debug)]
pub struct Emulator {
    namespace: Namespace,
    ends: [String; 2],
    /// The links at the other ends, where they are known.
    far_ends: Vec<(Namespace, String)>,
    lines: Lines,
    _wire: Wire,
}

impl Emulator {
    /// Joins two namespaces: a link called `left.1` in `left.0`, one called `right.1` in
    /// `right.0`, and between them a wire of this shape. Both are up, with their offloads off.
    ///
    /// # Errors
    ///
    /// When a name is taken.
    pub fn connect(
        left: (&Namespace, &str),
        right: (&Namespace, &str),
        shape: LinkShape,
    ) -> Result<Self> {
        let air = Namespace::new(&format!("air-{}", left.1))?;
        // The emulator's namespace must not send packets of its own.
        air.sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
        for (end, (namespace, link)) in [(LEFT, left), (RIGHT, right)] {
            veth(&air, end, namespace, link)?;
            namespace.disable_offloads(link)?;
        }
        let far_ends = [left, right].map(|(namespace, link)| (namespace.clone(), link.to_owned()));
        Ok(Self { far_ends: far_ends.into(), ..Self::new(&air, LEFT, RIGHT, shape)? })
    }

    /// Copies frames between two links that exist in `namespace`. What is at their other ends must
    /// send finished frames: see [`Namespace::disable_offloads`].
    ///
    /// # Errors
    ///
    /// When one of the links does not exist, or packet sockets are not permitted.
    pub fn new(namespace: &Namespace, left: &str, right: &str, shape: LinkShape) -> Result<Self> {
        let lines = Arc::new(Mutex::new([Line::new(shape, 1), Line::new(shape, 2)]));
        let open = |link: &str| {
            let index = namespace.ifindex(link)?;
            namespace.run(|| PacketSocket::open(index))?.map_err(|source| {
                Error::refused(namespace.label(), format!("open a packet socket on {link}"), source)
            })
        };
        let wire = Wire::start([open(left)?, open(right)?], Arc::clone(&lines))
            .map_err(|source| Error::refused(namespace.label(), "start the wire", source))?;
        let ends = [left.to_owned(), right.to_owned()];
        let far_ends = Vec::new();
        Ok(Self { namespace: namespace.clone(), ends, far_ends, lines, _wire: wire })
    }

    /// Changes the shape of both directions. Frames under way arrive when they would have, unless
    /// they meet a black hole.
    pub fn set(&self, shape: LinkShape) {
        for direction in Direction::BOTH {
            self.set_direction(direction, shape);
        }
    }

    /// Changes the shape of one direction.
    pub fn set_direction(&self, direction: Direction, shape: LinkShape) {
        self.lock()[direction as usize].shape = shape;
    }

    /// The shape of one direction.
    #[must_use]
    pub fn shape(&self, direction: Direction) -> LinkShape {
        self.lock()[direction as usize].shape
    }

    /// While `on`, drops every frame in both directions, including those under way. Both ends keep their carrier.
    pub fn black_hole(&self, on: bool) {
        for direction in Direction::BOTH {
            self.black_hole_direction(direction, on);
        }
    }

    /// While `on`, drops every frame of one direction.
    pub fn black_hole_direction(&self, direction: Direction, on: bool) {
        self.lock()[direction as usize].set_black_hole(on);
    }

    /// Restarts the sequence of losses and jitter, so that the same frames are lost and delayed alike.
    pub fn seed(&self, seed: u64) {
        for (line, salt) in self.lock().iter_mut().zip(1..) {
            line.seed(seed.wrapping_add(salt));
        }
    }

    /// The counters of one direction.
    #[must_use]
    pub fn counters(&self, direction: Direction) -> Counters {
        self.lock()[direction as usize].counters
    }

    /// Removes or restores the carrier of the link at one side.
    ///
    /// # Errors
    ///
    /// When the emulator's end has been deleted.
    pub fn plug(&self, side: Side, plugged: bool) -> Result<()> {
        let end = &self.ends[side as usize];
        if plugged {
            self.namespace.set_up(end)?
        } else {
            self.namespace.set_down(end)?
        }
        self.settle()
    }

    /// Waits until the kernel has followed the carriers of all links involved.
    pub(super) fn settle(&self) -> Result<()> {
        self.ends.iter().try_for_each(|end| self.namespace.settle(end))?;
        self.far_ends.iter().try_for_each(|(namespace, link)| namespace.settle(link))
    }

    fn lock(&self) -> MutexGuard<'_, [Line; 2]> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
