#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| roamd::internals::fuzz::capsule(data));
