use candle_core::{Device, Tensor};
use s2sfs::train::published::{CandleT5, Checkpoint, FloatT5, measure};
use std::time::Instant;
#[test]
fn speed() {
    let dir = std::path::PathBuf::from(std::env::var("T5DIR").unwrap());
    let t = Instant::now();
    let checkpoint = Checkpoint::load(&dir, &Device::Cpu).unwrap();
    eprintln!("load {:?}", t.elapsed());
    let data = vec![b'a'; 128 * 16];
    let mut theirs = CandleT5::new(&checkpoint).unwrap();
    let ours = FloatT5::new(&checkpoint).unwrap();
    for _ in 0..2 {
        let t = Instant::now();
        let m = measure(&checkpoint, &mut theirs, &data, &mut |_, _| ()).unwrap();
        eprintln!("candle-transformers {:?} {}", t.elapsed(), m.bits);
        let ids = checkpoint.pieces().encode(&data).unwrap().ids;
        let t = Instant::now();
        let memory = ours.encode(&[1], 1).unwrap().repeat((16, 1, 1)).unwrap();
        let loss = ours
            .loss(&memory, &ids, 128)
            .unwrap()
            .to_scalar::<f32>()
            .unwrap();
        eprintln!(
            "ours {:?} {}",
            t.elapsed(),
            f64::from(loss) * ids.len() as f64 / std::f64::consts::LN_2
        );
    }
    let _ = Tensor::new(0f32, &Device::Cpu);
}
