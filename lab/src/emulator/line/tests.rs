use super::*;

const MS: Duration = Duration::from_millis(1);

fn frame(length: usize) -> Vec<u8> {
    vec![0; length]
}

fn admit(line: &mut Line, length: usize, now: Instant) {
    line.admit(&frame(length), length, now);
}

#[test]
fn a_frame_arrives_after_the_delay_and_not_before() {
    let start = Instant::now();
    let mut line = Line::new(LinkShape::delayed(5 * MS), 1);
    admit(&mut line, 100, start);
    assert_eq!(line.next_due(), Some(start + 5 * MS));
    assert!(line.take_due(start + 4 * MS).is_none());
    assert!(line.take_due(start + 5 * MS).is_some());
    assert_eq!(line.next_due(), None);
}

#[test]
fn a_frame_handed_over_too_late_is_counted() {
    let start = Instant::now();
    let mut line = Line::new(LinkShape::delayed(5 * MS), 1);
    for handed_over in [6 * MS, 8 * MS] {
        admit(&mut line, 100, start);
        assert!(line.take_due(start + handed_over).is_some());
    }
    assert_eq!(line.counters.late, 1);
}

#[test]
fn a_shorter_delay_does_not_let_a_frame_overtake() {
    let start = Instant::now();
    let mut line = Line::new(LinkShape::delayed(50 * MS), 1);
    admit(&mut line, 100, start);
    line.shape.delay = MS;
    admit(&mut line, 200, start + MS);
    assert!(line.take_due(start + 49 * MS).is_none());
    assert_eq!(line.take_due(start + 50 * MS).map(|frame| frame.len()), Some(100));
    assert_eq!(line.take_due(start + 50 * MS).map(|frame| frame.len()), Some(200));
}

#[test]
fn a_rate_spaces_frames_and_a_full_queue_drops_them() {
    let start = Instant::now();
    // 1000 bytes take 8 ms at 1 Mbit/s.
    let shape = LinkShape { rate: Some(1_000_000), queue: 20 * MS, ..LinkShape::default() };
    let mut line = Line::new(shape, 1);
    for _ in 0..5 {
        admit(&mut line, 1000, start);
    }
    let due: Vec<_> = line.in_flight.iter().map(|next| next.due - start).collect();
    assert_eq!(due, [8 * MS, 16 * MS, 24 * MS]);
    assert_eq!(line.counters.overflowed, 2);
}

#[test]
fn the_same_seed_loses_the_same_frames() {
    let fate = |seed| {
        let mut line = Line::new(LinkShape { loss: 0.3, ..LinkShape::default() }, seed);
        let now = Instant::now();
        let arrives = |_| {
            admit(&mut line, 100, now);
            line.take_due(now).is_some()
        };
        (0..1000).map(arrives).collect::<Vec<bool>>()
    };
    assert_eq!(fate(7), fate(7));
    assert_ne!(fate(7), fate(8));
    let arrived = fate(7).into_iter().filter(|arrived| *arrived).count();
    assert!((650..750).contains(&arrived), "{arrived} of 1000 arrived at a loss of 30 %");
}

#[test]
fn loss_spares_address_resolution_and_groups() {
    let mut line = Line::new(LinkShape { loss: 1.0, ..LinkShape::default() }, 1);
    let mut arp = frame(60);
    arp[12..14].copy_from_slice(&ETHERTYPE_ARP);
    let mut solicitation = frame(86);
    solicitation[12..14].copy_from_slice(&ETHERTYPE_IPV6);
    solicitation[20] = IPPROTO_ICMPV6;
    solicitation[54] = 135;
    let mut to_group = frame(100);
    to_group[0] = 0x33;
    for frame in [arp, solicitation, to_group, frame(100)] {
        line.admit(&frame, frame.len(), Instant::now());
    }
    assert_eq!((line.in_flight.len(), line.counters.lost), (3, 1));
}

#[test]
fn a_black_hole_also_swallows_frames_under_way() {
    let start = Instant::now();
    let mut line = Line::new(LinkShape::delayed(5 * MS), 1);
    admit(&mut line, 100, start);
    line.set_black_hole(true);
    admit(&mut line, 100, start);
    assert_eq!((line.next_due(), line.counters.swallowed), (None, 2));
    line.set_black_hole(false);
    admit(&mut line, 100, start);
    assert!(line.next_due().is_some());
}

#[test]
fn a_packet_longer_than_the_mtu_is_dropped() {
    let mut line = Line::new(LinkShape { mtu: 1280, ..LinkShape::default() }, 1);
    admit(&mut line, 1280 + ETHERNET_HEADER, Instant::now());
    admit(&mut line, 1281 + ETHERNET_HEADER, Instant::now());
    assert_eq!((line.in_flight.len(), line.counters.oversize), (1, 1));
}

#[test]
fn a_line_that_blocks_udp_lets_everything_else_through() {
    let packet = |kind: [u8; 2], place: usize, protocol: u8| {
        let mut frame = frame(100);
        frame[12..ETHERNET_HEADER].copy_from_slice(&kind);
        frame[ETHERNET_HEADER + place] = protocol;
        frame
    };
    let (udp, tcp) = (17, 6);
    let frames = [
        packet(ETHERTYPE_IPV4, 9, udp),
        packet(ETHERTYPE_IPV6, 6, udp),
        packet(ETHERTYPE_IPV4, 9, tcp),
        packet(ETHERTYPE_IPV6, 6, tcp),
        packet(ETHERTYPE_ARP, 9, udp),
    ];
    let through = |blocks_udp| {
        let mut line = Line::new(LinkShape { blocks_udp, ..LinkShape::default() }, 1);
        for frame in &frames {
            line.admit(frame, frame.len(), Instant::now());
        }
        (line.in_flight.len(), line.counters.swallowed)
    };
    assert_eq!((through(true), through(false)), ((3, 2), (5, 0)));
}
