//! What leaves a queue, in which order, and when.

use super::{flow::tests::of_flow, *};

const TCP: u8 = 6;

fn queue(capacity: usize) -> Queue {
    let queue = Queue::new(capacity);
    queue.hold(false);
    queue
}

fn packets(lengths: &[usize]) -> Vec<Packet> {
    lengths.iter().map(|length| of_flow(false, TCP, 22, *length).into()).collect()
}

fn pop(queue: &Queue, limit: usize) -> Vec<usize> {
    let mut batch = Vec::new();
    let _ = queue.pop(&mut batch, limit, usize::MAX);
    batch.iter().map(Packet::size).collect()
}

/// A transfer waits behind a stream of small packets, each of which leaves at once.
#[tokio::test(start_paused = true)]
async fn a_queue_stands_for_as_long_as_something_always_waits() {
    let queue = queue(100_000);
    let second = Duration::from_secs(1);
    assert_eq!(queue.stands(), Duration::ZERO);
    let _ = queue.push(&mut packets(&[1000; 4]));
    for turn in 1..4 {
        tokio::time::sleep(second).await;
        assert_eq!(queue.stands(), turn * second);
        let _ = queue.push(&mut packets(&[40]));
        pop(&queue, 1);
    }
    pop(&queue, 100);
    assert_eq!((queue.bytes(), queue.stands()), (0, Duration::ZERO));
    tokio::time::sleep(second).await;
    let _ = queue.push(&mut packets(&[40]));
    assert_eq!(queue.stands(), Duration::ZERO);

    let mut sent = Vec::new();
    let _ = queue.pop(&mut sent, 1, usize::MAX);
    tokio::time::sleep(second).await;
    queue.put_back_all(sent);
    assert_eq!(queue.stands(), Duration::ZERO, "it comes back");
    queue.hold(true);
    tokio::time::sleep(second).await;
    assert_eq!(queue.stands(), Duration::ZERO, "it has no path");
    queue.hold(false);
    assert_eq!(queue.stands(), Duration::ZERO, "now it has one");
    tokio::time::sleep(second).await;
    assert_eq!(queue.stands(), second);
}

#[test]
fn packets_of_a_flow_leave_in_the_order_in_which_they_came() {
    let queue = queue(10_000);
    assert_eq!(queue.push(&mut packets(&[41, 42, 43])), Dropped::default());
    assert_eq!(pop(&queue, 2), [41, 42]);
    assert_eq!(pop(&queue, 2), [43]);
    assert_eq!(queue.bytes(), 0);
    assert!(pop(&queue, 2).is_empty());
}

#[test]
fn a_queue_that_overflows_drops_its_oldest_packet() {
    let queue = queue(100 + 3 * OVERHEAD);
    assert_eq!(queue.push(&mut packets(&[44, 45])).full, 0);
    assert_eq!(queue.push(&mut packets(&[43])).full, 1);
    assert_eq!(pop(&queue, 9), [45, 43]);
}

#[test]
fn a_held_queue_gives_nothing_until_it_is_released() {
    let queue = Queue::new(1000);
    queue.push(&mut packets(&[41]));
    assert!(pop(&queue, 9).is_empty());
    queue.hold(false);
    assert_eq!(pop(&queue, 9), [41]);
}

#[test]
fn a_queue_that_forgets_has_its_memory_back() {
    let pool = Pool::new(10_000);
    let queue = Queue::sharing(pool.clone(), 10_000);
    queue.push(&mut packets(&[41, 42, 43]));
    let (early, _) = queue.take_early(42);
    queue.put_back(early);
    assert_eq!((queue.clear(), queue.bytes()), (3, 0));
    queue.push(&mut packets(&[44]));
    queue.hold(false);
    assert_eq!(pop(&queue, 9), [44]);
}

#[test]
fn early_packets_go_back_into_the_queue_in_order() {
    let queue = Queue::new(10_000);
    queue.push(&mut packets(&[100, 200, 300, 400]));
    queue.push(&mut vec![of_flow(false, 17, 53, 50).into()]);
    let (early, _) = queue.take_early(350);
    assert_eq!(early.datagrams().iter().map(Bytes::len).collect::<Vec<_>>(), [100, 200]);
    queue.put_back(early);
    assert_eq!(queue.bytes(), 1050);
    queue.hold(false);
    assert_eq!(pop(&queue, 9), [100, 200, 300, 400, 50]);
}

#[test]
fn only_what_is_copied_leaves_out_of_turn() {
    let queue = queue(100_000);
    let tcp = |port, length| {
        let mut packet = of_flow(false, TCP, port, length);
        packet[32] = 0x50; // a header of 20 bytes
        packet.into()
    };
    let mut batch = Vec::new();
    // A full segment, a short one behind it, and a bare acknowledgement.
    queue.push(&mut vec![tcp(1, 1400), tcp(1, 100), tcp(2, 600), tcp(3, 40)]);
    assert!(!queue.has_sparse());
    queue.pop_sparse(&mut batch, 9);
    assert_eq!((batch.len(), queue.bytes()), (0, 2140));
    // What was typed leaves, with the acknowledgement before it.
    queue.push(&mut vec![tcp(3, 76), tcp(3, 40)]);
    queue.pop_sparse(&mut batch, 9);
    assert_eq!(batch.iter().map(Packet::size).collect::<Vec<_>>(), [40, 76]);
    assert!(!queue.has_sparse());
    assert_eq!(queue.bytes(), 2140);
}

#[test]
fn what_sends_little_is_found_behind_what_sends_much() {
    let queue = queue(100_000);
    queue.push(&mut packets(&[1400; 10]));
    assert_eq!(pop(&queue, 3), [1400; 3], "it has had its first turn");
    assert!(!queue.has_sparse());
    queue.push(&mut vec![of_flow(false, 17, 53, 60).into(), of_flow(false, 17, 54, 61).into()]);
    assert!(queue.has_sparse());
    let mut batch = Vec::new();
    assert_eq!(queue.pop_sparse(&mut batch, 9), Dropped::default());
    assert_eq!(batch.iter().map(Packet::size).collect::<Vec<_>>(), [60, 61]);
    assert!(!queue.has_sparse());
    assert_eq!(pop(&queue, 9), [1400; 7]);
}

/// A flow that was empty a moment ago waits for its turn behind the upload, which has none while nothing may leave.
#[tokio::test(start_paused = true)]
async fn sparse_flows_leave_whosever_turn_it_is() {
    let queue = queue(100_000);
    let key = || vec![of_flow(false, 17, 53, 60).into()];
    queue.push(&mut packets(&[1400; 10]));
    queue.push(&mut key());
    assert_eq!(pop(&queue, 4), [1400, 1400, 60, 1400]);
    let mut batch = Vec::new();
    for _ in 0..100 {
        queue.push(&mut key());
        assert!(queue.has_sparse());
        queue.pop_sparse(&mut batch, 9);
        assert!(!queue.has_sparse(), "the upload has more waiting");
    }
    assert_eq!(batch.iter().map(Packet::size).collect::<Vec<_>>(), [60; 100]);
    assert_eq!(pop(&queue, 9), [1400; 7]);
}

/// A burst of 400 ms on a path of 300.
#[tokio::test(start_paused = true)]
async fn a_burst_of_more_than_a_round_trip_passes_while_losses_are_repaired() {
    for (is_repaired, passes) in [(true, true), (false, false)] {
        let queue = queue(1 << 20);
        queue.set_round_trip(Duration::from_millis(300));
        if is_repaired {
            queue.note_repair();
        }
        queue.push(&mut packets(&[1000; 100]));
        let mut slow = 0;
        for _ in 0..100 {
            tokio::time::advance(Duration::from_millis(4)).await;
            slow += queue.pop(&mut Vec::new(), 1, usize::MAX).slow;
        }
        assert_eq!(slow == 0, passes, "{slow}");
    }
}

/// Typing beside uploads of three senders, a packet each millisecond: bytes of bulk that left, the longest wait of a
/// key, and packets dropped to slow their sender down.
async fn typing_beside_bulk(queue: &Queue, milliseconds: u32) -> (usize, Duration, u64) {
    let (mut bulk, mut longest, mut slow) = (0, Duration::ZERO, 0);
    let mut batch = Vec::new();
    let mut typed = None;
    for at in 0..milliseconds {
        if queue.bytes() < 200_000 {
            for sender in 1..4 {
                queue.push_from(sender, &mut packets(&[1400; 10]));
            }
        }
        if at % 100 == 0 {
            queue.push_from(1, &mut vec![of_flow(false, TCP, 23, 100).into()]);
            typed = Some(clock::now());
        }
        slow += queue.pop(&mut batch, 1, usize::MAX).slow;
        for packet in batch.drain(..) {
            if packet.size() == 100 {
                longest = longest.max(clock::now() - typed.take().unwrap());
            } else {
                bulk += packet.size();
            }
        }
        tokio::time::advance(Duration::from_millis(1)).await;
    }
    assert_eq!(typed, None, "each key left before the next one came");
    (bulk, longest, slow)
}

#[tokio::test(start_paused = true)]
async fn held_bulk_trickles_while_keys_pass_and_all_of_it_goes_on_at_once() {
    let queue = queue(1 << 20);
    let (bulk, longest, _) = typing_beside_bulk(&queue, 20_000).await;
    assert!(bulk > 20_000 * 1300, "{bulk}");
    assert!(longest <= Duration::from_millis(12), "{longest:?}");
    queue.hold_bulk(true);
    let _ = typing_beside_bulk(&queue, 1000).await;
    let (bulk, longest, slow) = typing_beside_bulk(&queue, 60_000).await;
    assert_eq!(slow, 0, "nobody is told to slow down");
    assert!((60 * 950..=60 * 1100).contains(&bulk), "{bulk}");
    assert!(longest <= Duration::from_millis(2), "{longest:?}");
    assert!(queue.bytes() > 100_000 && queue.delay() < Duration::from_millis(1));
    queue.hold_bulk(false);
    assert_eq!(pop(&queue, 3), [1400; 3]);
    let (bulk, ..) = typing_beside_bulk(&queue, 1000).await;
    assert!(bulk > 1000 * 1300, "{bulk}");
}

#[tokio::test(start_paused = true)]
async fn only_bulk_that_was_held_makes_the_queue_patient_when_it_flows() {
    let queue = queue(1 << 20);
    queue.hold_bulk(false);
    assert_eq!(queue.lock().patient_until, None, "each session begins so");
    queue.hold_bulk(true);
    queue.hold_bulk(false);
    assert_eq!(queue.lock().patient_until, Some(clock::now() + PATIENCE));
}

#[tokio::test(start_paused = true)]
async fn nobody_is_woken_for_bulk_that_is_held() {
    let queue = queue(1 << 20);
    queue.hold_bulk(true);
    queue.push(&mut packets(&[1400; 100]));
    let left: usize = pop(&queue, 100).iter().sum();
    assert!((65_000..70_000).contains(&left), "{left}");
    let begun = clock::now();
    for trickled in 1..5_u32 {
        assert!(!queue.is_ready());
        queue.ready().await;
        assert_eq!(pop(&queue, 100), [1400]);
        let expected = trickled * Duration::from_secs_f64(1400.0 / 1024.0);
        let waited = clock::now() - begun;
        assert!(waited.abs_diff(expected) < Duration::from_millis(20), "{waited:?}");
    }
    let woken = tokio::time::timeout(Duration::from_secs(1), queue.ready()).await;
    assert!(woken.is_err());
    queue.push(&mut vec![of_flow(false, TCP, 23, 100).into()]);
    assert_eq!(pop(&queue, 100), [100]);
}

#[tokio::test]
async fn a_push_wakes_the_reader() {
    let queue = std::sync::Arc::new(queue(1000));
    let reader = tokio::spawn({
        let queue = queue.clone();
        async move {
            let mut batch = Vec::new();
            queue.ready().await;
            let _ = queue.pop(&mut batch, 1, usize::MAX);
            batch
        }
    });
    tokio::task::yield_now().await;
    queue.push(&mut packets(&[47]));
    assert_eq!(reader.await.unwrap(), packets(&[47]));
}
