//! compress, decompress, bench and man: commands that need no store.

#[path = "common/cli.rs"]
#[allow(dead_code)]
mod cli;

use cli::*;

#[test]
fn a_file_is_compressed_and_comes_back() {
    let bed = Bed::new();
    let (file, back) = (bed.path("text.txt"), bed.path("back.txt"));
    let contents = sample(5, 500_000);
    std::fs::write(&file, &contents).unwrap();
    let output = s2sfs(["compress".as_ref(), file.as_os_str()]);
    assert!(output.status.success(), "{}", text(&output));
    let packed = bed.path("text.txt.s2s");
    assert!(std::fs::metadata(&packed).unwrap().len() < contents.len() as u64 / 2);
    let output = s2sfs([
        "decompress".as_ref(),
        packed.as_os_str(),
        "--output".as_ref(),
        back.as_os_str(),
    ]);
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(std::fs::read(&back).unwrap(), contents);
}

#[test]
fn existing_files_are_not_replaced_unless_forced() {
    let bed = Bed::new();
    let file = bed.path("text.txt");
    std::fs::write(&file, "short").unwrap();
    assert!(
        s2sfs(["compress".as_ref(), file.as_os_str()])
            .status
            .success()
    );
    let again = s2sfs(["compress".as_ref(), file.as_os_str()]);
    assert_refused(&again, exit::USAGE, "--force");
    assert!(
        s2sfs(["compress".as_ref(), "--force".as_ref(), file.as_os_str()])
            .status
            .success()
    );
}

#[test]
fn an_output_that_is_no_regular_file_is_written_to_and_not_replaced() {
    use std::os::unix::fs::FileTypeExt;
    let bed = Bed::new();
    let (file, pipe) = (bed.path("text.txt"), bed.path("pipe"));
    std::fs::write(&file, sample(5, 100_000)).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RWXU).unwrap();
    let run = |command: &str, file: &std::path::Path| {
        let reader = std::thread::spawn({
            let pipe = pipe.clone();
            move || std::fs::read(pipe).unwrap()
        });
        let [output, force] = ["--output", "--force"].map(std::ffi::OsStr::new);
        let arguments = [file.as_os_str(), output, pipe.as_os_str(), force];
        let done = finish(program().arg(command).args(arguments));
        assert!(done.status.success(), "{}", text(&done));
        assert!(pipe.metadata().unwrap().file_type().is_fifo());
        reader.join().unwrap()
    };
    let packed = run("compress", &file);
    std::fs::write(bed.path("packed"), packed).unwrap();
    assert_eq!(run("decompress", &bed.path("packed")), sample(5, 100_000));
    let shown = finish(
        program()
            .args(["compress", "--force", "--output", "/dev/stdout"])
            .arg(&file),
    );
    assert_eq!(shown.stdout, std::fs::read(bed.path("packed")).unwrap());
}

#[test]
fn damaged_and_foreign_files_are_refused_and_leave_nothing_behind() {
    let bed = Bed::new();
    let (file, packed) = (bed.path("a.txt"), bed.path("a.txt.s2s"));
    std::fs::write(&file, sample(2, 300_000)).unwrap();
    assert!(
        s2sfs(["compress".as_ref(), file.as_os_str()])
            .status
            .success()
    );
    let mut bytes = std::fs::read(&packed).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&packed, &bytes).unwrap();
    std::fs::remove_file(&file).unwrap();
    let output = s2sfs(["decompress".as_ref(), packed.as_os_str()]);
    assert_refused(&output, exit::DAMAGED, "damaged at extent");
    std::fs::write(&packed, "something else").unwrap();
    let output = s2sfs(["decompress".as_ref(), packed.as_os_str()]);
    assert_refused(
        &output,
        exit::NOT_A_STORE,
        "not a file that s2sfs compress made",
    );
    let names: Vec<_> = std::fs::read_dir(bed.path(""))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(names.len(), 2, "{names:?}");
}

#[test]
fn bench_reports_every_way_to_encode() {
    let bed = Bed::new();
    let file = bed.path("text.txt");
    std::fs::write(&file, sample(5, 200_000)).unwrap();
    let output = s2sfs(["bench".as_ref(), "--json".as_ref(), file.as_os_str()]);
    assert!(output.status.success(), "{}", text(&output));
    let rows: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = rows.as_array().unwrap();
    assert_eq!(rows.len(), 4);
    for row in rows {
        assert_eq!(row["raw_bytes"], 200_000);
        assert!(row["ratio"].as_f64().unwrap() > 1.0);
    }
    let output = s2sfs(["bench".as_ref(), bed.path("missing").as_os_str()]);
    assert_refused(&output, exit::FAILED, "missing");
}

#[test]
fn manual_pages_in_the_tree_match_the_program() {
    for page in ["s2sfs.1", "mount.s2sfs.8", "s2sfs.toml.5"] {
        let output = s2sfs(["man", page]);
        let path = format!("{}/docs/man/{page}", env!("CARGO_MANIFEST_DIR"));
        let in_tree = std::fs::read(path).unwrap();
        assert!(
            output.stdout == in_tree,
            "{page} is out of date: run make man"
        );
    }
}

#[test]
fn every_field_of_the_status_is_in_the_manual() {
    let fields = serde_json::to_value(s2sfs::control::Status::default()).unwrap();
    let page = include_str!("../docs/man/s2sfs.1");
    for name in fields.as_object().unwrap().keys() {
        assert!(page.contains(&format!("\\fB{name}\\fR")), "{name}");
    }
}

#[test]
fn help_and_version_are_no_errors() {
    for arguments in [["--help"], ["--version"]] {
        assert_eq!(s2sfs(arguments).status.code(), Some(exit::OK));
        assert_eq!(
            finish(helper().args(arguments)).status.code(),
            Some(exit::OK)
        );
    }
    let shown = finish(helper().arg("--help"));
    assert!(String::from_utf8_lossy(&shown.stdout).contains("settle_after=TIME|never"));
}

#[test]
fn training_says_what_it_made_and_makes_the_same_model_again() {
    let bed = Bed::new();
    let dir = bed.path("texts");
    std::fs::create_dir(&dir).unwrap();
    for number in 0..8 {
        std::fs::write(dir.join(format!("{number}.txt")), sample(number, 60_000)).unwrap();
    }
    let train = |output: &std::path::Path| {
        let (dir, output) = (dir.as_os_str(), output.as_os_str());
        s2sfs([
            "train".as_ref(),
            dir,
            "-o".as_ref(),
            output,
            "--buckets".as_ref(),
            "20000".as_ref(),
            "--name".as_ref(),
            "t".as_ref(),
        ])
    };
    let output = train(&bed.path("a.s2m"));
    assert!(output.status.success(), "{}", text(&output));
    assert!(String::from_utf8_lossy(&output.stderr).contains("bits per byte of held-out data"));
    assert!(train(&bed.path("b.s2m")).status.success());
    assert_eq!(
        std::fs::read(bed.path("a.s2m")).unwrap(),
        std::fs::read(bed.path("b.s2m")).unwrap()
    );
    assert_refused(&train(&bed.path("a.s2m")), exit::USAGE, "--force");
    let small = bed.path("small");
    std::fs::create_dir(&small).unwrap();
    std::fs::write(small.join("x"), "too little").unwrap();
    let output = s2sfs([
        "train".as_ref(),
        small.as_os_str(),
        "-o".as_ref(),
        bed.path("c").as_os_str(),
    ]);
    assert_refused(&output, exit::USAGE, "training needs at least");
}
