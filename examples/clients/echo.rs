//! Keystrokes: echo requests (RFC 792) through the tunnel to the server with the time in them, and what comes back.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use quinn::Connection;
use tokio::time;

use crate::rig;

/// The server's inner address.
pub(crate) const SERVER: [u8; 4] = [10, 66, 0, 1];
/// From one keystroke to the next.
pub(crate) const INTERVAL: Duration = Duration::from_millis(20);

const ICMP: u8 = 1;

/// Keystrokes, and their echoes.
#[derive(Default)]
pub(crate) struct Pings {
    pub(crate) sent: usize,
    /// In milliseconds.
    pub(crate) answers: Vec<f64>,
}

impl Pings {
    /// The median, the 99th percentile and the longest.
    pub(crate) fn percentiles(&mut self) -> [f64; 3] {
        self.answers.sort_by(f64::total_cmp);
        [0.5, 0.99, 1.0].map(|share| {
            let at = (self.answers.len().saturating_sub(1)) as f64 * share;
            self.answers.get(at as usize).copied().unwrap_or(f64::NAN)
        })
    }
}

/// Types as the client with the inner address `own`, until it is told to stop or the connection ends.
pub(crate) async fn type_until(
    stop: &AtomicBool,
    connection: &Connection,
    own: [u8; 4],
    pings: &Mutex<Pings>,
) {
    let begun = Instant::now();
    let locked = || pings.lock().unwrap_or_else(PoisonError::into_inner);
    let mut ticks = time::interval(INTERVAL);
    while !stop.load(Relaxed) {
        tokio::select! {
            datagram = connection.read_datagram() => {
                let Ok(datagram) = datagram else { return };
                if let Some(sent) = echo(&datagram) {
                    let trip = begun.elapsed().saturating_sub(Duration::from_micros(sent));
                    locked().answers.push(trip.as_secs_f64() * 1000.0);
                }
            }
            _ = ticks.tick() => {
                let now = begun.elapsed().as_micros() as u64;
                let mut icmp = [[8, 0, 0, 0, 0, 0, 0, 0], now.to_be_bytes()].concat();
                let sum = rig::checksum(&icmp);
                icmp[2..4].copy_from_slice(&sum.to_be_bytes());
                locked().sent += 1;
                let request = rig::ipv4(own, SERVER, ICMP, &icmp);
                if connection.send_datagram(request.into()).is_err() {
                    return;
                }
            }
        }
    }
}

/// When the echo request was sent whose answer the datagram carries, with a number or without: the first eight bytes of its
/// data.
fn echo(datagram: &[u8]) -> Option<u64> {
    const NUMBERED: u8 = 3;
    const HEADER: usize = 6;
    let packet = datagram.get(if datagram.first() == Some(&NUMBERED) { HEADER } else { 0 }..)?;
    let is_answer = packet.get(9) == Some(&1) && packet.get(20) == Some(&0);
    let sent = packet.get(28..)?.first_chunk()?;
    is_answer.then(|| u64::from_be_bytes(*sent))
}
