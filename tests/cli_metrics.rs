//! Metrics for Prometheus, over HTTP.

#[path = "common/cli.rs"]
#[allow(dead_code)]
mod cli;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use cli::*;

fn exchange(mut stream: impl Read + Write, request: &[u8]) -> String {
    // The server may refuse before it has read everything.
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

fn ask(socket: &Path, request: &[u8]) -> String {
    exchange(UnixStream::connect(socket).unwrap(), request)
}

fn get(socket: &Path) -> String {
    ask(socket, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
}

/// Samples by their names with labels; panics where the text is not in the format.
fn samples(answer: &str) -> HashMap<&str, f64> {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains("Content-Type: application/openmetrics-text; version=1.0.0"));
    assert!(head.contains(&format!("Content-Length: {}", body.len())));
    assert!(body.ends_with("# EOF\n"), "{body}");
    let lines = body.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name, value.parse().unwrap_or_else(|_| panic!("{line}")))
        })
        .collect()
}

#[test]
fn metrics_say_what_status_says() {
    if !can_mount() {
        return;
    }
    let bed = Bed::new();
    let socket = bed.path("metrics.sock");
    let options = format!("metrics=unix:{}", socket.display());
    bed.mount(&options);
    let files = write_tree(&bed.mnt);
    bed.settle();
    let status = bed.status(&bed.mnt);
    let answer = get(&socket);
    let samples = samples(&answer);
    assert_eq!(samples["s2sfs_files"], files.len() as f64);
    for name in ["logical_bytes", "stored_bytes", "ratio"] {
        let metric = format!("s2sfs_{name}");
        assert_eq!(
            Some(samples[metric.as_str()]),
            status[name].as_f64(),
            "{name}"
        );
    }
    assert_eq!(
        Some(samples["s2sfs_written_bytes_total"]),
        status["io"]["written_bytes"].as_f64()
    );
    let writes = samples["s2sfs_latency_seconds_count{operation=\"write\"}"];
    assert_eq!(Some(writes), status["latency"]["write"]["count"].as_f64());
    assert!(writes >= files.len() as f64 - 1.0);
    let all = samples["s2sfs_latency_seconds_bucket{le=\"+Inf\",operation=\"write\"}"];
    assert_eq!(all, writes);
    assert!(
        samples
            .keys()
            .any(|name| name.starts_with("s2sfs_codec_stored_bytes{codec="))
    );

    // The next daemon finds the address free, and one without the option leaves none behind.
    bed.umount();
    assert!(!socket.exists());
    bed.mount(&options);
    assert!(get(&socket).contains("s2sfs_files"));
}

#[test]
fn a_read_of_a_damaged_block_fails_and_is_counted() {
    if !can_mount() {
        return;
    }
    let bed = Bed::new();
    let socket = bed.path("metrics.sock");
    let options = format!("policy=fast,metrics=unix:{}", socket.display());
    bed.mount(&options);
    let file = bed.mnt.join("file");
    std::fs::write(&file, sample(1, 300_000)).unwrap();
    bed.settle();
    bed.umount();
    let log = std::fs::read_dir(bed.store.join("log")).unwrap();
    let segments = log.map(|entry| entry.unwrap().path());
    let blocks = segments.filter(|path| path.extension().is_some_and(|kind| kind == "b"));
    let segment = blocks.max_by_key(|path| path.metadata().unwrap().len());
    let segment = segment.expect("the file is settled");
    let mut bytes = std::fs::read(&segment).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&segment, bytes).unwrap();

    bed.mount(&options);
    let errors = || {
        let answer = get(&socket);
        let samples = samples(&answer);
        (
            samples["s2sfs_io_errors_total"],
            samples["s2sfs_no_space_errors_total"],
        )
    };
    assert_eq!(errors(), (0.0, 0.0));
    let failed = std::fs::read(&file).unwrap_err();
    assert_eq!(failed.raw_os_error(), Some(libc::EIO));
    let (io, no_space) = errors();
    assert!(io >= 1.0 && no_space == 0.0, "{io} {no_space}");
    let status = bed.status(&bed.mnt);
    assert_eq!(status["errors"]["io"].as_f64(), Some(io));
}

#[test]
fn bad_clients_are_refused_and_hold_nobody_up_for_long() {
    if !can_mount() {
        return;
    }
    let bed = Bed::new();
    let socket = bed.path("metrics.sock");
    bed.mount(&format!("metrics=unix:{}", socket.display()));
    for (request, answer) in [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], "404"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", "405"),
        (b"\x01\x02\x03\r\n\r\n", "400"),
        (b"GET /metrics HTTP/1.1\r\nbad header\r\n\r\n", "400"),
    ] {
        let got = ask(&socket, request);
        assert!(got.starts_with(&format!("HTTP/1.1 {answer} ")), "{got}");
    }
    let long = [
        b"GET /metrics HTTP/1.1\r\nA: ".to_vec(),
        vec![b'x'; 1 << 20],
    ]
    .concat();
    let got = ask(&socket, &long);
    assert!(got.is_empty() || got.starts_with("HTTP/1.1 431 "), "{got}");

    let begun = Instant::now();
    let mut slow = UnixStream::connect(&socket).unwrap();
    slow.write_all(b"GET /metr").unwrap();
    let gone = UnixStream::connect(&socket).unwrap();
    drop(gone);
    assert!(get(&socket).contains("s2sfs_files"));
    assert!(
        begun.elapsed() < Duration::from_secs(60),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(
        slow.read(&mut [0; 1]).unwrap_or(0),
        0,
        "the slow one is dropped"
    );
}

#[test]
fn metrics_on_a_port_are_for_this_machine_only() {
    if !can_mount() {
        return;
    }
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let bed = Bed::mounted(&format!("metrics={address}"));
    let stream = TcpStream::connect(address).unwrap();
    let answer = exchange(stream, b"GET /metrics HTTP/1.1\r\n\r\n");
    assert_eq!(samples(&answer)["s2sfs_read_only"], 0.0);
    bed.umount();
    assert!(TcpStream::connect(address).is_err());

    for wrong in ["0.0.0.0:9464", "192.168.0.1:9464", "unix:relative", "9464"] {
        let output = bed.try_mount(&format!("metrics={wrong}"));
        assert_refused(&output, exit::HELPER_USAGE, "metrics=");
    }
}

#[test]
fn a_mount_without_its_metrics_is_still_a_mount() {
    if !can_mount() {
        return;
    }
    let bed = Bed::new();
    let (file, log) = (bed.path("precious"), bed.path("log"));
    std::fs::write(&file, "precious").unwrap();
    bed.mount(&format!(
        "metrics=unix:{},log={}",
        file.display(),
        log.display()
    ));
    std::fs::write(bed.mnt.join("a"), "b").unwrap();
    bed.umount();
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
}

#[test]
fn the_list_of_metrics_in_the_tree_is_that_of_the_program() {
    let output = s2sfs(["man", "metrics.md"]);
    assert!(output.status.success(), "{}", text(&output));
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
    let in_tree = std::fs::read(path).unwrap();
    assert!(
        output.stdout == in_tree,
        "docs/metrics.md is out of date: run make man"
    );
}
