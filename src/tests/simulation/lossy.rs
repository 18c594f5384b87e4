//! Networks that lose packets, between the real client and server.

use super::{ends::Ends, *};

const LOSS: f64 = 0.02;
const PACKETS: u32 = 3000;
const PACE: Duration = Duration::from_millis(8);

#[test]
fn a_tcp_connection_loses_next_to_nothing_and_stays_in_order() {
    virtual_time().block_on(async {
        let ends = Ends::connected(1).await;
        ends.day.world.change(0, |wifi| wifi.loss = LOSS);
        for number in 0..PACKETS {
            ends.send(TCP, number, 600).await;
            sleep(PACE).await;
        }
        sleep(Duration::from_secs(2)).await;
        let traffic = ends.client.status().traffic;
        for (way, arrivals) in ends.arrived(TCP) {
            let lost = PACKETS - arrivals.len() as u32;
            let late = arrivals.windows(2).filter(|pair| pair[1].0 < pair[0].0).count() as u32;
            // Some 60 are lost at first. Two requests or answers in a row may be lost as well, and a window that was
            // cut lets a repair come too late.
            assert!(lost + late <= 4, "{way}: {lost} lost, {late} late, {traffic:?}");
        }
        let least = u64::from(PACKETS) / 100;
        assert!(
            traffic.repaired_packets > least && traffic.repeated_packets > least,
            "{traffic:?}"
        );
    });
}
