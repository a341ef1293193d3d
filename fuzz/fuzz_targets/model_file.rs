#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| s2sfs::fuzzing::model_file(data));
