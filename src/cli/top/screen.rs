//! The terminal of `s2sfs top`: keys, signals, and putting everything back in the end.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::Sample;
use super::rates::History;
use super::view::{self, View};

/// How soon a signal is noticed.
const TICK: Duration = Duration::from_millis(100);

/// Gives the terminal back however the program goes on.
struct Restore;

impl Drop for Restore {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing.
        let _ = ratatui::try_restore();
    }
}

/// What keys have changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Keys {
    pub paused: bool,
    pub help: bool,
    pub quit: bool,
}

impl Keys {
    /// What a key does.
    pub fn press(&mut self, key: KeyEvent) {
        if key.kind == KeyEventKind::Release {
            return;
        }
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('c') if control => self.quit = true,
            KeyCode::Esc if self.help => self.help = false,
            KeyCode::Char('q' | 'Q') | KeyCode::Esc => self.quit = true,
            KeyCode::Char('p' | ' ') => self.paused = !self.paused,
            KeyCode::Char('?' | 'h') => self.help = !self.help,
            _ => {}
        }
    }
}

/// Shows what happens until a key or a signal ends it, and that nothing is heard of the daemon for longer than `patience`.
pub fn run(
    history: &mut History,
    samples: &Receiver<Sample>,
    patience: Duration,
) -> io::Result<()> {
    let ended = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGHUP, SIGINT] {
        signal_hook::flag::register(signal, ended.clone())?;
    }
    // First, so that a terminal that was only half prepared is restored, too.
    let _restore = Restore;
    let mut terminal = ratatui::try_init()?;
    let mut keys = Keys::default();
    draw(&mut terminal, history, keys)?;
    while !keys.quit && !ended.load(Relaxed) {
        let mut changed = false;
        if event::poll(TICK)? {
            match event::read()? {
                Event::Key(key) => keys.press(key),
                // Drawing looks up the new size.
                Event::Resize(..) => terminal.autoresize()?,
                _ => {}
            }
            changed = true;
        }
        match samples.try_recv() {
            Ok(sample) if !keys.paused => {
                history.add(sample);
                changed = true;
            }
            Ok(sample) => history.hear(sample.at),
            Err(TryRecvError::Empty) if keys.paused => {}
            Err(TryRecvError::Empty) => changed |= history.miss(Instant::now(), patience),
            Err(TryRecvError::Disconnected) => return Err(io::Error::other("sampling ended")),
        }
        if changed {
            draw(&mut terminal, history, keys)?;
        }
    }
    Ok(())
}

fn draw(terminal: &mut DefaultTerminal, history: &History, keys: Keys) -> io::Result<()> {
    let shown = View {
        history,
        paused: keys.paused,
        help: keys.help,
    };
    terminal.draw(|frame| view::draw(&shown, frame)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_do_what_the_help_says() {
        let mut keys = Keys::default();
        let mut press = |code, modifiers| {
            keys.press(KeyEvent::new(code, modifiers));
            (keys.paused, keys.help, keys.quit)
        };
        let none = KeyModifiers::NONE;
        assert_eq!(press(KeyCode::Char('p'), none), (true, false, false));
        assert_eq!(press(KeyCode::Char('p'), none), (false, false, false));
        assert_eq!(press(KeyCode::Char('?'), none), (false, true, false));
        assert_eq!(press(KeyCode::Esc, none), (false, false, false));
        assert_eq!(press(KeyCode::Char('c'), none), (false, false, false));
        let control = KeyModifiers::CONTROL;
        assert_eq!(press(KeyCode::Char('c'), control), (false, false, true));
        let mut keys = Keys::default();
        keys.press(KeyEvent::new(KeyCode::Char('q'), none));
        assert!(keys.quit);
    }
}
