//! The thread that carries the frames.

use std::{
    io,
    io::{PipeReader, PipeWriter},
    os::fd::AsFd,
    sync::PoisonError,
    thread::{self, JoinHandle},
    time::Instant,
};

use nix::{
    libc,
    poll::{PollFd, PollFlags, ppoll},
    sys::{prctl::set_timerslack, time::TimeSpec},
};

use super::{Lines, line::Line, shape::Direction, socket::PacketSocket};

/// Frames taken from one side before the other gets its turn.
const BATCH: usize = 64;

/// The thread's nice value. Busy daemons must not make the link late: beside three busy loops on two
/// cores, 1 frame in 100 is more than a millisecond late, and 8 in 100 without it.
const NICENESS: i32 = -15;

/// A jumbo frame with its header, and more.
const BUFFER: usize = 10 << 10;

/// The running thread; dropped, it stops.
#[derive(Debug)]
pub(super) struct Wire {
    stop: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl Wire {
    /// Starts to carry frames between the left and the right socket.
    pub(super) fn start(sockets: [PacketSocket; 2], lines: Lines) -> io::Result<Self> {
        let (stopped, stop) = io::pipe()?;
        let thread = thread::Builder::new().name("wire".to_owned()).spawn(move || {
            be_punctual();
            carry(&sockets, &lines, &stopped);
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Makes this thread wake on time, as far as its privileges allow.
fn be_punctual() {
    // poll(2) may be late by the slack, 50 µs unless told otherwise.
    let _ = set_timerslack(1);
    // SAFETY: setpriority(2) takes three numbers; on Linux, 0 is the calling thread.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS) };
}

fn carry(sockets: &[PacketSocket; 2], lines: &Lines, stopped: &PipeReader) {
    let mut buffer = vec![0; BUFFER];
    let mut next_due = None;
    loop {
        let mut waited_for = [
            PollFd::new(sockets[0].as_fd(), PollFlags::POLLIN),
            PollFd::new(sockets[1].as_fd(), PollFlags::POLLIN),
            PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
        ];
        let timeout = next_due.map(|due: Instant| {
            TimeSpec::from_duration(due.saturating_duration_since(Instant::now()))
        });
        // Interrupted or not: what is there is taken, what is due is sent.
        let _ = ppoll(&mut waited_for, timeout, None);
        // The writing end is never written to, only closed.
        if waited_for[2].any() == Some(true) {
            return;
        }
        let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
        for direction in Direction::BOTH {
            let [from, to] = match direction {
                Direction::LeftToRight => [&sockets[0], &sockets[1]],
                Direction::RightToLeft => [&sockets[1], &sockets[0]],
            };
            let line = &mut lines[direction as usize];
            take_in(line, from, &mut buffer);
            hand_over(line, to);
        }
        next_due = lines.iter().filter_map(Line::next_due).min();
    }
}

fn take_in(line: &mut Line, from: &PacketSocket, buffer: &mut [u8]) {
    for taken in 0..BATCH {
        let Some(length) = from.receive(buffer) else { return };
        // A full batch is the only free sign that the thread falls behind.
        if taken == BATCH - 1 {
            line.counters.missed += u64::from(from.missed());
        }
        line.admit(&buffer[..length.min(BUFFER)], length, Instant::now());
    }
}

fn hand_over(line: &mut Line, to: &PacketSocket) {
    let now = Instant::now();
    while let Some(frame) = line.take_due(now) {
        match to.send(&frame) {
            Ok(length) => {
                line.counters.passed += 1;
                line.counters.bytes += length as u64;
            }
            Err(_) => line.counters.refused += 1,
        }
    }
}
