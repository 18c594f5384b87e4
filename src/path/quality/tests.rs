use super::*;

const MS: Duration = Duration::from_millis(1);

/// Packets that overtake each other look lost, but not most of them.
#[test]
fn a_path_that_carries_little_while_most_is_lost_is_narrow() {
    let fell = Symptoms { fell_to: Some(100_000), rtt: Some(10 * MS), ..Symptoms::default() };
    for (loss, expected) in [(0.3, None), (0.7, Some(Fault::Narrow(100_000)))] {
        assert_eq!(Symptoms { loss, ..fell }.fault(Some(10 * MS)), expected, "{loss}");
    }
    let lost = Symptoms { loss: 0.7, ..Symptoms::default() };
    assert_eq!(lost.fault(Some(10 * MS)), None, "a burst tells");
}

#[test]
fn the_least_share_is_that_of_wilsons_interval() {
    for (lost, all, expected) in [
        (0, 0, 0.0),
        (0, 50, 0.0),
        (1, 1, 0.271),
        (5, 10, 0.270),
        (10, 100, 0.061),
        (300, 1000, 0.277),
    ] {
        let least = least_share(lost, all);
        assert!((least - expected).abs() < 0.001, "{lost} of {all}: {least}");
    }
}

#[test]
fn a_path_that_grew_slow_is_one_with_thrice_its_round_trip_and_a_bit() {
    let slow =
        |rtt: u32| Symptoms { rtt: Some(rtt * MS), ..Symptoms::default() }.fault(Some(10 * MS));
    assert_eq!(slow(80), None);
    assert_eq!(slow(81), Some(Fault::Slow { rtt: 81 * MS, floor: 10 * MS }));
    assert_eq!(slow(81).unwrap().to_string(), "takes 81 ms instead of 10");
}

#[test]
fn a_fault_is_over_when_a_burst_finds_nothing_of_it() {
    let sample =
        |answered, rtt: u32, rate| Sample { sent: 24, answered, rtt: Some(rtt * MS), rate };
    let floor = Some(10 * MS);
    let slow = Fault::Slow { rtt: 400 * MS, floor: 10 * MS };
    for (fault, sample, expected) in [
        (Fault::Lossy(30), sample(24, 12, None), true),
        (Fault::Lossy(30), sample(23, 12, None), true),
        (Fault::Lossy(30), sample(22, 12, None), false),
        (Fault::Lossy(30), sample(24, 200, None), false),
        (slow, sample(24, 49, None), true),
        (slow, sample(24, 50, None), false),
        (slow, sample(20, 12, None), false),
        (Fault::Narrow(200_000), sample(24, 12, None), false),
        (Fault::Narrow(200_000), sample(24, 12, Some(400_000)), false),
        (Fault::Narrow(200_000), sample(24, 12, Some(8_000_000)), true),
        (Fault::Narrow(1_500_000), sample(24, 12, Some(2_000_000)), false),
        (Fault::Narrow(1000), sample(24, 12, Some(250_000)), false),
        (Fault::Narrow(50_000), sample(24, 12, Some(500_000)), true),
    ] {
        assert_eq!(
            is_over(Some(fault), &sample, floor, Some(10 * MS)),
            expected,
            "{fault}: {sample:?}"
        );
    }
}

#[test]
fn a_slow_path_that_is_about_as_fast_as_the_active_one_is_used_again() {
    let slow = Fault::Slow { rtt: 400 * MS, floor: 10 * MS };
    for (rtt, expected) in [(99, true), (100, false)] {
        let sample = Sample { sent: 24, answered: 24, rtt: Some(rtt * MS), rate: None };
        assert_eq!(is_over(Some(slow), &sample, None, Some(50 * MS)), expected, "{rtt} ms");
        let active = Fault::Slow { rtt: rtt * MS, floor: 10 * MS };
        let other = Sample { rtt: Some(50 * MS), ..sample };
        assert!(!active.is_cured_by(&other), "and is not left at once");
    }
}

#[test]
fn a_standby_that_loses_packets_is_no_cure() {
    let slow = Fault::Slow { rtt: 400 * MS, floor: 10 * MS };
    let rate = Some(8_000_000);
    for (fault, answered, expected) in [
        (slow, 24, true),
        (slow, 3, false),
        (Fault::Narrow(200_000), 23, true),
        (Fault::Narrow(200_000), 20, false),
        (Fault::Lossy(60), 20, true),
    ] {
        let standby = Sample { sent: 24, answered, rtt: Some(20 * MS), rate };
        assert_eq!(fault.is_cured_by(&standby), expected, "{fault}: {answered} of 24");
    }
}

#[test]
fn a_few_echoes_show_that_a_path_is_bad_but_not_that_it_is_good() {
    let finding = |sent, answered| {
        let sample = Sample { sent, answered, rtt: Some(10 * MS), rate: None };
        Symptoms::default().finding(Some(&sample))
    };
    assert_eq!(finding(6, 1), Finding::Bad(Fault::Lossy(59)));
    assert_eq!(finding(7, 7), Finding::Unsure);
    assert_eq!(finding(8, 7), Finding::Clean);
}

/// A path that loses a tenth each way answers 23 or 24 of 24 echoes in one burst of 24.
#[test]
fn with_many_lost_packets_a_path_is_not_clean_because_one_burst_lost_one_echo() {
    for (loss, sent, lost, expected) in [
        (0.05, 24, 1, Finding::Clean),
        (0.1, 24, 1, Finding::Unsure),
        (0.1, 24, 0, Finding::Clean),
        (0.1, 48, 1, Finding::Clean),
        (0.1, 48, 2, Finding::Unsure),
    ] {
        let sample = Sample { sent, answered: sent - lost, rtt: Some(10 * MS), rate: None };
        let symptoms = Symptoms { loss, ..Symptoms::default() };
        assert_eq!(symptoms.finding(Some(&sample)), expected, "{loss}: {lost} of {sent}");
    }
}
