//! The Internet checksum (RFC 1071), and the completion of a partial one.

/// The sum of 16-bit words, carries folded in. An odd last byte counts as the high half of a word.
#[must_use]
pub(crate) fn sum(bytes: &[u8]) -> u16 {
    let (words, rest) = bytes.as_chunks::<4>();
    let mut total: u64 = words.iter().map(|word| u64::from(u32::from_be_bytes(*word))).sum();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    total += u64::from(u32::from_be_bytes(last));
    fold(total)
}

/// One's complement addition of two sums.
#[must_use]
pub(crate) fn add(left: u16, right: u16) -> u16 {
    fold(u64::from(left) + u64::from(right))
}

fn fold(mut total: u64) -> u16 {
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

/// A checksum after one word changed (RFC 1624 §3, equation 3).
#[must_use]
pub(crate) fn updated(checksum: u16, old: u16, new: u16) -> u16 {
    !add(add(!checksum, !old), new)
}

/// Computes a checksum whose field, at byte `field`, holds the sum of the pseudo-header.
pub(crate) fn complete(transport: &mut [u8], field: usize) {
    // Zero would mean that there is none (RFC 768); all ones is the same number.
    let checksum = match !sum(transport) {
        0 => 0xffff,
        checksum => checksum,
    };
    transport[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
}

/// Writes the checksum of an IPv4 header (RFC 791 §3.1).
pub(crate) fn complete_ipv4(header: &mut [u8]) {
    header[10..12].fill(0);
    let checksum = !sum(header);
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
}

/// The sum of the pseudo-header (RFC 9293 §3.1, RFC 8200 §8.1) of a packet with `length` bytes from
/// its transport header on. `ip` begins with a whole IP header.
#[must_use]
pub(crate) fn pseudo_header(ip: &[u8], protocol: u8, length: usize) -> u16 {
    let addresses = if ip[0] >> 4 == 4 { &ip[12..20] } else { &ip[8..40] };
    fold(u64::from(sum(addresses)) + u64::from(protocol) + length as u64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fuzz::reference;

    proptest! {
        #[test]
        fn the_sum_equals_that_of_a_reference(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
            prop_assert_eq!(sum(&bytes), reference::sum(&bytes));
        }

        #[test]
        fn a_changed_word_changes_the_checksum_alike(
            mut words in proptest::collection::vec(any::<u16>(), 2..20),
            new in any::<u16>(),
        ) {
            let bytes = |words: &[u16]| words.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<_>>();
            // A header is never all zeroes, the one case where both zeroes could come out.
            words[1] |= 1;
            let before = !sum(&bytes(&words));
            let old = std::mem::replace(&mut words[0], new);
            prop_assert_eq!(updated(before, old, new), !sum(&bytes(&words)));
        }

        #[test]
        fn a_completed_packet_sums_up_to_nothing_missing(
            mut bytes in proptest::collection::vec(any::<u8>(), 20..1500),
            pseudo in any::<u16>(),
        ) {
            bytes[16..18].copy_from_slice(&pseudo.to_be_bytes());
            complete(&mut bytes, 16);
            prop_assert_ne!(&bytes[16..18], &[0, 0]);
            prop_assert_eq!(add(reference::sum(&bytes), pseudo), 0xffff);
        }
    }

    #[test]
    fn the_sum_matches_the_example_of_rfc_1071() {
        assert_eq!(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), 0xddf2);
    }
}
