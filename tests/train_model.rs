//! Training: the same files give the same model, and the model knows what it was trained on.

use std::path::Path;
use std::sync::Arc;

use s2sfs::codec::{CodecId, Codecs, EncodeOptions};
use s2sfs::model::adaptive::Histories;
use s2sfs::model::{Model, hash_of};
use s2sfs::train::mixing::{self, MixingOptions};
use s2sfs::train::{Progress, TrainError, TrainOptions, train};

fn options() -> TrainOptions {
    TrainOptions {
        name: "test".into(),
        buckets: 60_000,
        vocabulary: 600,
        dictionary: 0,
        seed: 3,
        plain: false,
    }
}

fn own_source() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

#[test]
fn tables_know_bytes_by_a_code_or_by_their_bits_and_files_say_which() {
    let dir = tempfile::tempdir().unwrap();
    for (number, text) in ["predictor.rs", "tables.rs", "file.rs", "mixer.rs"]
        .iter()
        .enumerate()
    {
        let text = std::fs::read(own_source().join("model").join(text)).unwrap();
        std::fs::write(dir.path().join(number.to_string()), text).unwrap();
    }
    let progress = Progress::new(&|_, _, _, _| ());
    let raw = std::fs::read(own_source().join("model/walk.rs")).unwrap();
    for (plain, version) in [(true, 1), (false, 4)] {
        let options = TrainOptions { plain, ..options() };
        let file = train(dir.path(), &options, &progress)
            .unwrap()
            .to_bytes()
            .unwrap();
        assert_eq!(file[8..12], u32::to_le_bytes(version));
        let model = Model::from_bytes(&file).unwrap();
        assert_eq!(model.code().is_plain(), plain);
        assert_eq!(model.to_bytes().unwrap(), file);
        let codecs = Codecs::with_model(&file).unwrap();
        let (encoded, _) = codecs.encode_by_model(&raw, 4096, None, None).unwrap();
        assert_eq!(codecs.decode_all(&encoded.payload, None).unwrap(), raw);
        let zstd = zstd::bulk::compress(&raw, 19).unwrap().len();
        assert!(encoded.payload.len() < zstd, "{}", encoded.payload.len());
    }
}

#[test]
fn the_same_files_give_the_same_model_and_it_pays() {
    let reports = std::sync::Mutex::new(Vec::new());
    let sink = |what: &str, done: usize, total: usize, _: Option<f64>| {
        assert!(done <= total);
        reports.lock().unwrap().push(what.to_owned());
    };
    let make = || {
        train(&own_source(), &options(), &Progress::new(&sink))
            .unwrap()
            .to_bytes()
            .unwrap()
    };
    let file = make();
    assert_eq!(
        hash_of(&file),
        hash_of(&make()),
        "training is not deterministic"
    );
    assert!(
        reports
            .lock()
            .unwrap()
            .iter()
            .any(|what| what.contains("tables"))
    );

    let model = Model::from_bytes(&file).unwrap();
    assert_eq!(model.info.name, "test");
    assert!((0.1..4.0).contains(&model.info.held_out_bits_per_byte));

    let codecs = Codecs::with_model(&file).unwrap();
    let raw = std::fs::read(own_source().join("model/predictor.rs")).unwrap();
    let encoded = codecs
        .encode(&raw, &EncodeOptions::default(), None)
        .unwrap();
    assert_eq!(encoded.codec, CodecId::Model);
    let zstd = zstd::bulk::compress(&raw, 19).unwrap().len();
    assert!(
        encoded.payload.len() * 10 < zstd * 9,
        "{} against {zstd}",
        encoded.payload.len()
    );
    assert_eq!(codecs.decode_all(&encoded.payload, None).unwrap(), raw);

    // a reader without this model says which one is missing
    let error = Codecs::without_model()
        .decode_all(&encoded.payload, None)
        .unwrap_err();
    assert!(error.to_string().contains("needs model"), "{error}");
}

#[test]
fn too_little_data_and_missing_directories_are_clear_errors() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a"), b"hello").unwrap();
    let nothing = |_: &str, _: usize, _: usize, _: Option<f64>| {};
    let progress = Progress::new(&nothing);
    let error = train(dir.path(), &options(), &progress).unwrap_err();
    assert!(
        matches!(error, TrainError::TooLittle { bytes: 5, .. }),
        "{error}"
    );
    let error = train(&dir.path().join("no"), &options(), &progress).unwrap_err();
    assert!(matches!(error, TrainError::Read { .. }), "{error}");
}

#[test]
fn a_mixer_with_runs_is_trained_the_same_again_and_survives_its_file() {
    let progress = Progress::new(&|_, _, _, _| ());
    let base = train(&own_source().join("model"), &options(), &progress).unwrap();
    let base = Arc::new(Model::from_bytes(&base.packed(1).unwrap()).unwrap());
    for histories in [Histories::Lean, Histories::All] {
        let trained = || {
            let options = MixingOptions {
                name: "test".into(),
                bytes: 80 << 10,
                seed: 3,
                threads: 1,
                mixer: Some(histories),
            };
            let dir = own_source().join("model");
            let model = mixing::train(&dir, Some(&*base), None, &options, &progress);
            model.unwrap().to_bytes().unwrap()
        };
        let file = trained();
        assert!(file == trained());
        let model = Model::from_bytes_and(&file, &|_| Some(base.clone())).unwrap();
        assert_eq!(model.histories(), histories);
        assert!(model.adaptation().runs.is_some());
        assert!(model.to_bytes().unwrap() == file);
    }
}

#[test]
fn data_of_too_few_files_gives_no_model() {
    let dir = tempfile::tempdir().unwrap();
    let progress = Progress::new(&|_, _, _, _| ());
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/full.s2m");
    let base = Model::from_bytes(&std::fs::read(file).unwrap()).unwrap();
    let mixer = |bytes| {
        let options = MixingOptions {
            name: "test".into(),
            bytes,
            seed: 1,
            threads: 1,
            mixer: None,
        };
        mixing::train(dir.path(), Some(&base), None, &options, &progress).err()
    };
    for name in ["a", "b"] {
        std::fs::write(dir.path().join(name), vec![b'a'; 70_000]).unwrap();
        let error = train(dir.path(), &options(), &progress).err();
        assert!(matches!(error, Some(TrainError::TooFew(_))), "{error:?}");
        let error = mixer(1 << 20);
        assert_eq!(
            matches!(error, Some(TrainError::TooFew(_))),
            name == "a",
            "{error:?}"
        );
    }
    let error = mixer(1000);
    assert!(
        matches!(error, Some(TrainError::MixerBytes(1000))),
        "{error:?}"
    );
}
