//! One frame of `s2sfs top`.

use ratatui::buffer::Buffer;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Paragraph, Row, Sparkline, Table};
use ratatui::{Frame, Terminal, backend::TestBackend};

use super::rates::{History, Rates};
use crate::cli::output::{bytes, micros, percent};
use crate::cli::scrub;
use crate::control::{Latency, Status, ratio};
use crate::volume::printable;

const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
const DIM: Style = Style::new().add_modifier(Modifier::DIM);
/// Columns in front of a sparkline.
const LABEL: u16 = 26;
const HELP: [&str; 7] = [
    "q, Esc, Ctrl-C  quit",
    "p, space        pause, and go on",
    "?               this help",
    "",
    "Rates are those of the last interval, sizes those of now;",
    "latencies, errors and reclaimed bytes count from the mount on.",
    "cached reads needed nothing but memory, decoded ones a codec.",
];

/// What a sparkline shows of the rates.
type Value = fn(&Rates) -> f64;

/// What a frame shows.
pub struct View<'h> {
    pub history: &'h History,
    pub paused: bool,
    pub help: bool,
}

impl<'h> View<'h> {
    pub fn new(history: &'h History) -> View<'h> {
        View {
            history,
            paused: false,
            help: false,
        }
    }
}

/// Draws a frame of any size.
pub fn draw(view: &View, frame: &mut Frame) {
    let Some(status) = view.history.status() else {
        frame.render_widget(Paragraph::new("no figures yet"), frame.area());
        return;
    };
    let codecs = (status.codecs.len() as u16).max(5) + 3;
    let [head, traffic, state, tables, foot] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Length(6),
        Constraint::Length(9),
        Constraint::Min(codecs),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(heading(view, status), head);
    draw_traffic(view, frame, traffic);
    let halves = Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]);
    let [left, right] = halves.areas(state);
    let hits = view.history.now().hits;
    frame.render_widget(figures("store", store_lines(status)), left);
    frame.render_widget(figures("work", work_lines(status, hits)), right);
    let [left, right] = halves.areas(tables);
    frame.render_widget(codec_table(status), left);
    frame.render_widget(latency_table(status, &view.history.now()), right);
    frame.render_widget(Line::styled("q quit   p pause   ? help", DIM), foot);
    if view.help {
        draw_help(frame);
    }
}

/// The frame as lines of text without colours.
pub fn plain(view: &View, (width, height): (u16, u16)) -> String {
    let Ok(mut terminal) = Terminal::new(TestBackend::new(width, height));
    let Ok(_) = terminal.draw(|frame| draw(view, frame));
    text_of(terminal.backend().buffer())
}

fn text_of(buffer: &Buffer) -> String {
    let mut text = String::new();
    for row in buffer.content.chunks(usize::from(buffer.area.width).max(1)) {
        let line: String = row.iter().map(|cell| cell.symbol()).collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

fn heading<'a>(view: &View, status: &Status) -> Paragraph<'a> {
    let point = status.mountpoint.as_deref().unwrap_or("-");
    let mut first = vec![
        Span::styled(printable(point), BOLD),
        Span::raw(format!("  store {}", printable(&status.store))),
    ];
    if status.read_only {
        first.push(" read-only".yellow());
    }
    if view.paused {
        first.push(" PAUSED".yellow().bold());
    }
    let second = match (&view.history.silence, &status.failed) {
        (Some(why), _) => {
            Line::from(format!("the daemon does not answer: {}", printable(why))).red()
        }
        (None, Some(why)) => Line::from(format!("FAILED: {}", printable(why))).red(),
        (None, None) => Line::from(format!(
            "pid {}  up {}  model {}  engine {}, {} threads  version {}",
            status.pid.unwrap_or_default(),
            uptime(status.uptime_seconds),
            status.model,
            status.engine,
            status.threads,
            status.version
        )),
    };
    Paragraph::new(vec![Line::from(first), second])
}

fn uptime(seconds: f64) -> String {
    let seconds = seconds as u64;
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours) {
        (0, 0) => format!("{minutes}m{}s", seconds % 60),
        (0, _) => format!("{hours}h{minutes}m"),
        _ => format!("{days}d{hours}h"),
    }
}

fn draw_traffic(view: &View, frame: &mut Frame, area: Rect) {
    let block = Block::bordered().title(" traffic ");
    let lines = Layout::vertical([Constraint::Length(1); 4]).split(block.inner(area));
    frame.render_widget(block, area);
    let series: [(&str, Value, Color); 4] = [
        ("read", |rates| rates.read, Color::Cyan),
        ("written", |rates| rates.written, Color::Yellow),
        ("settled", |rates| rates.settled, Color::Green),
        ("decoded", |rates| rates.decoded, Color::Magenta),
    ];
    for ((name, value, colour), line) in series.into_iter().zip(lines.iter()) {
        let [label, graph] =
            Layout::horizontal([Constraint::Length(LABEL), Constraint::Fill(1)]).areas(*line);
        let rate = format!("{}/s", bytes(value(&view.history.now()) as u64));
        let text = format!("{name:<10}{rate:>14}");
        frame.render_widget(Line::raw(text), label);
        let rates = view.history.rates.iter();
        let shown = rates.rev().take(usize::from(graph.width));
        let mut points: Vec<u64> = shown.map(|rates| value(rates) as u64).collect();
        points.reverse();
        frame.render_widget(Sparkline::default().data(points).style(colour), graph);
    }
}

fn figures<'a>(title: &'a str, lines: Vec<(&'a str, String)>) -> Paragraph<'a> {
    let line = |(name, value): (&str, String)| Line::raw(format!("{name:<10} {value}"));
    let lines: Vec<Line> = lines.into_iter().map(line).collect();
    Paragraph::new(lines).block(Block::bordered().title(format!(" {title} ")))
}

fn store_lines(status: &Status) -> Vec<(&'static str, String)> {
    let dead = percent(status.dead_bytes, status.log_bytes);
    vec![
        ("logical", bytes(status.logical_bytes)),
        ("stored", bytes(status.stored_bytes)),
        ("ratio", format!("{:.2}", status.ratio)),
        (
            "files",
            format!("{}, {} directories", status.files, status.directories),
        ),
        (
            "log",
            format!("{}, {dead} of it dead", bytes(status.log_bytes)),
        ),
        ("models", bytes(status.model_bytes)),
        ("free", bytes(status.free_bytes)),
    ]
}

fn work_lines(status: &Status, hits: Option<f64>) -> Vec<(&'static str, String)> {
    let (cache, settle, reclaim) = (&status.cache, &status.settle, &status.reclaim);
    let rate = hits.map_or("-".into(), |hits| format!("{:.0} %", 100.0 * hits));
    let all = percent(cache.hits, cache.hits + cache.misses);
    let errors = &status.errors;
    vec![
        (
            "queue",
            format!(
                "{} extents, {}",
                settle.queue_length,
                bytes(settle.queue_bytes)
            ),
        ),
        ("dirty", bytes(status.dirty_bytes)),
        (
            "cache",
            format!("{} of {}", bytes(cache.bytes), bytes(cache.limit_bytes)),
        ),
        ("hits", format!("{rate} now, {all} in all")),
        ("scrub", scrub::line(&status.scrub)),
        (
            "reclaim",
            format!(
                "{}, {} given back",
                if reclaim.running { "running" } else { "idle" },
                bytes(reclaim.freed_bytes)
            ),
        ),
        (
            "errors",
            format!(
                "{} EIO, {} disk full, {} settling, {} scrub",
                errors.io, errors.no_space, errors.settle, status.scrub.errors
            ),
        ),
    ]
}

fn codec_table<'a>(status: &Status) -> Table<'a> {
    let rows = status.codecs.iter().map(|(name, usage)| {
        Row::new([
            name.clone(),
            usage.extents.to_string(),
            bytes(usage.logical_bytes),
            bytes(usage.stored_bytes),
            format!("{:.2}", ratio(usage.logical_bytes, usage.stored_bytes)),
        ])
    });
    let widths = [8, 8, 11, 11, 6].map(Constraint::Length);
    table(
        "codecs",
        ["codec", "extents", "logical", "stored", "ratio"],
        rows,
        widths,
    )
}

fn latency_table<'a>(status: &Status, now: &Rates) -> Table<'a> {
    let names = [
        "read cached",
        "read decoded",
        "write",
        "fsync",
        "settle batch",
    ];
    let kinds = names
        .into_iter()
        .zip(status.latency.all())
        .zip(now.requests);
    let rows: Vec<Row> = kinds
        .map(|((name, (_, latency)), rate)| latency_row(name, latency, rate))
        .collect();
    let widths = [12, 8, 8, 8, 8].map(Constraint::Length);
    table("latency", ["", "1/s", "p50", "p99", "max"], rows, widths)
}

fn latency_row<'a>(name: &str, latency: &Latency, rate: f64) -> Row<'a> {
    let time = |time| match latency.count {
        0 => "-".into(),
        _ => micros(time),
    };
    Row::new([
        name.to_owned(),
        format!("{rate:.0}"),
        time(latency.p50_micros),
        time(latency.p99_micros),
        time(latency.max_micros),
    ])
}

fn table<'a, const N: usize>(
    title: &str,
    head: [&'a str; N],
    rows: impl IntoIterator<Item = Row<'a>>,
    widths: [Constraint; N],
) -> Table<'a> {
    Table::new(rows, widths)
        .header(Row::new(head).style(BOLD))
        .block(Block::bordered().title(format!(" {title} ")))
}

fn draw_help(frame: &mut Frame) {
    let area = frame.area();
    let (width, height) = (62.min(area.width), (HELP.len() as u16 + 2).min(area.height));
    let window = Rect {
        x: (area.width - width) / 2,
        y: (area.height - height) / 2,
        width,
        height,
    };
    let lines: Vec<Line> = HELP.iter().map(|line| Line::raw(*line)).collect();
    let block = Block::bordered().title(" help ");
    frame.render_widget(Clear, window);
    let text = Paragraph::new(lines).block(block);
    frame.render_widget(text.alignment(Alignment::Left), window);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::top::Sample;
    use crate::control::CodecUsage;
    use std::time::{Duration, Instant};

    fn history() -> History {
        let start = Instant::now();
        let mut history = History::default();
        for second in 0..40u64 {
            let mut status = Status {
                pid: Some(7),
                mountpoint: Some("/mnt/a\u{1b}[31m".into()),
                store: "/data".into(),
                logical_bytes: 3 << 30,
                stored_bytes: 1 << 30,
                ratio: 3.0,
                ..Status::default()
            };
            status.io.read_bytes = (second * second) << 20;
            status.errors.io = 3;
            status.latency.fsync.count = second;
            status.latency.fsync.p99_micros = 4200;
            let usage = CodecUsage {
                extents: 12,
                logical_bytes: 1 << 20,
                stored_bytes: 1 << 18,
            };
            status.codecs.insert("model".into(), usage);
            let at = start + Duration::from_secs(second);
            history.add(Sample {
                at,
                status: Ok(status),
            });
        }
        history
    }

    #[test]
    fn a_frame_shows_the_figures_and_the_history() {
        let shown = plain(&View::new(&history()), (100, 34));
        for words in [
            "/mnt/a?[31m  store /data",
            "read          77.0 MiB/s",
            "ratio      3.00",
            "3 EIO",
            "model    12       1.0 MiB     256.0 KiB   4.00",
            "fsync        1        0 us     4.2 ms",
            "q quit",
            "█",
        ] {
            assert!(shown.contains(words), "{words} is not in\n{shown}");
        }
        assert!(!shown.contains('\u{1b}') && !shown.contains("PAUSED"));
    }

    #[test]
    fn a_silent_daemon_a_pause_and_the_help_are_said() {
        let mut history = history();
        history.add(Sample {
            at: Instant::now(),
            status: Err("cannot reach the daemon".into()),
        });
        let mut view = View::new(&history);
        view.paused = true;
        let shown = plain(&view, (100, 34));
        assert!(shown.contains("does not answer: cannot reach"), "{shown}");
        assert!(shown.contains("PAUSED") && shown.contains("3.0 GiB"));
        view.help = true;
        assert!(plain(&view, (100, 34)).contains("pause, and go on"));
    }

    #[test]
    fn frames_of_any_size_are_drawn() {
        let history = history();
        let mut view = View::new(&history);
        view.help = true;
        for size in [(1, 1), (5, 3), (20, 10), (62, 9), (300, 100)] {
            plain(&view, size);
        }
        plain(&View::new(&History::default()), (80, 24));
    }
}
