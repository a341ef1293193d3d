//! `s2sfs plot`: one page that needs nothing from elsewhere.

#[path = "common/cli.rs"]
#[allow(dead_code)]
mod cli;

use std::path::Path;

use cli::*;
use roxmltree::{Document, ParsingOptions};

/// Writes the page about `store`, and returns it.
fn plot(bed: &Bed, store: &Path) -> String {
    let page = bed.path("report.html");
    let output = s2sfs([
        "plot".as_ref(),
        store.as_os_str(),
        "-o".as_ref(),
        page.as_os_str(),
    ]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(output.stderr.is_empty(), "{}", text(&output));
    std::fs::read_to_string(page).unwrap()
}

/// Checks that the page stands alone, and returns its texts by paragraph, cell or label.
fn words(page: &str, charts: usize) -> Vec<String> {
    let options = ParsingOptions {
        allow_dtd: true,
        ..ParsingOptions::default()
    };
    let document = Document::parse_with_options(page, options).unwrap();
    let nodes = || document.descendants().filter(|node| node.is_element());
    let svgs: Vec<_> = nodes()
        .filter(|node| node.tag_name().name() == "svg")
        .collect();
    assert_eq!(svgs.len(), charts);
    for svg in svgs {
        let bars = svg
            .descendants()
            .filter(|node| node.tag_name().name() == "rect");
        let lines = svg
            .descendants()
            .filter(|node| node.tag_name().name() == "polyline");
        assert!(bars.count() + lines.count() > 0, "an empty chart");
    }
    for node in nodes() {
        let name = node.tag_name().name();
        assert!(
            !["script", "link", "img", "iframe"].contains(&name),
            "{name}"
        );
        for attribute in node.attributes() {
            assert!(!["href", "src"].contains(&attribute.name()), "{name}");
        }
    }
    assert!(!page.contains("url(") && !page.contains("@import"));
    let texts = document.descendants().filter(|node| node.is_text());
    texts
        .filter_map(|node| node.text())
        .map(|text| text.trim().to_owned())
        .collect()
}

#[test]
fn a_page_shows_a_mounted_store_and_the_same_store_unmounted() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let bed = Bed::on(&dir.path().join("a <b> & \"c\""));
    bed.mount("");
    let files = write_tree(&bed.mnt);
    std::fs::write(bed.mnt.join("page.html"), sample(9, 9000)).unwrap();
    std::fs::hard_link(bed.mnt.join("page.html"), bed.mnt.join("again.html")).unwrap();
    let old = std::fs::File::open(bed.mnt.join("page.html")).unwrap();
    let past = std::time::SystemTime::now() - std::time::Duration::from_secs(20 * 86_400);
    old.set_modified(past).unwrap();
    old.sync_all().unwrap();
    drop(old);
    bed.settle();
    let status = bed.status(&bed.mnt);
    let ratio = format!("{:.2}", status["ratio"].as_f64().unwrap());

    let mounted = plot(&bed, &bed.mnt);
    let shown = words(&mounted, 7);
    let count = files.len() + 1;
    for text in [
        &format!("s2sfs store {}", bed.store.display()),
        "txt",
        "html",
        "ratio by codec",
        "a month",
        "fsync",
        "how long things took since the mount",
        &format!("{count}, {} directories", status["directories"]),
    ] {
        let found = shown.iter().any(|word| word == text);
        assert!(found, "{text} is not in {shown:?}");
    }
    assert!(shown.contains(&ratio), "{ratio}: {shown:?}");
    assert!(words(&plot(&bed, &bed.store), 7).contains(&"html".to_owned()));

    bed.umount();
    let unmounted = plot(&bed, &bed.store);
    let shown = words(&unmounted, 6);
    assert!(shown.contains(&format!("{count}, {} directories", status["directories"])));
    // The files are stored as they were: the tables are the same.
    let table = |page: &str| {
        let from = page.find("<h2>By type").unwrap();
        let to = page.find("<h2>Latency").unwrap_or(page.len());
        page[from..to].replace("</body>\n</html>\n", "")
    };
    assert_eq!(table(&mounted), table(&unmounted));
}

#[test]
fn an_empty_store_has_a_page_and_something_else_has_none() {
    let bed = Bed::new();
    let page = bed.path("report.html");
    let plot = |path: &Path| {
        s2sfs([
            "plot".as_ref(),
            path.as_os_str(),
            "-o".as_ref(),
            page.as_os_str(),
        ])
    };
    assert_refused(&plot(&bed.mnt), exit::NOT_A_STORE, "store");
    assert_refused(&plot(&bed.path("missing")), exit::FAILED, "missing");
    assert!(!page.exists());
    if !can_mount() {
        return;
    }
    bed.mount("");
    let output = plot(&bed.mnt);
    assert!(output.status.success(), "{}", text(&output));
    let text = std::fs::read_to_string(&page).unwrap();
    assert!(text.contains("nothing yet"));
    // A link stays one, and so does what is no regular file.
    std::fs::rename(&page, bed.path("elsewhere.html")).unwrap();
    std::os::unix::fs::symlink("elsewhere.html", &page).unwrap();
    assert!(plot(&bed.mnt).status.success());
    assert!(page.is_symlink());
    let shown = s2sfs([
        "plot".as_ref(),
        bed.mnt.as_os_str(),
        "-o".as_ref(),
        "/dev/stdout".as_ref(),
    ]);
    assert!(String::from_utf8_lossy(&shown.stdout).contains("nothing yet"));
}
