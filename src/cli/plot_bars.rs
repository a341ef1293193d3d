//! Figures as SVG: panels of horizontal bars with their values, readable on light and on dark pages.

use plotters::prelude::*;

use super::plot::{Area, DrawResult, NEUTRAL, WIDTH, colour, font};
use crate::volume::printable;

/// Height of a bar with the space around it.
const BAR: u32 = 19;
/// Space above and below the bars of a panel.
const TITLE: u32 = 30;
const BELOW: u32 = 12;
/// Room for the names of bars, and for the values behind them.
const NAMES: i32 = 170;
const VALUES: i32 = 74;
const MARGIN: i32 = 10;

/// One bar.
#[derive(Debug, Clone)]
pub struct Bar {
    pub name: String,
    /// None where there is nothing to show: the name is there, and a dash.
    pub value: Option<f64>,
    /// In the colour of what the figure is about.
    pub own: bool,
}

/// Bars of one measure.
#[derive(Debug, Clone, Default)]
pub struct BarPanel {
    pub title: String,
    pub bars: Vec<Bar>,
    /// Lengths are logarithms: for values that differ by powers of ten.
    pub logarithmic: bool,
}

/// Panels in rows of so many columns.
#[derive(Debug)]
pub struct BarFigure {
    pub columns: usize,
    pub panels: Vec<BarPanel>,
}

impl BarFigure {
    /// The figure as an SVG document. `format` writes a value.
    ///
    /// # Errors
    /// If the library cannot draw it.
    pub fn svg(&self, format: &dyn Fn(f64) -> String) -> Result<String, String> {
        let mut text = String::new();
        self.draw(&mut text, format)
            .map_err(|error| error.to_string())?;
        Ok(text)
    }

    fn draw(&self, text: &mut String, format: &dyn Fn(f64) -> String) -> DrawResult {
        let columns = self.columns.max(1);
        let height = |row: &[BarPanel]| {
            let bars = row.iter().map(|panel| panel.bars.len()).max().unwrap_or(0);
            TITLE + BELOW + BAR * bars as u32
        };
        let rows: Vec<&[BarPanel]> = self.panels.chunks(columns).collect();
        let heights: Vec<u32> = rows.iter().map(|row| height(row)).collect();
        let size = (
            WIDTH.max(480 * columns as u32),
            heights.iter().sum::<u32>().max(1),
        );
        let root = SVGBackend::with_string(text, size).into_drawing_area();
        let mut rest = root.clone();
        for (row, height) in rows.iter().zip(heights) {
            let (here, below) = rest.split_vertically(height);
            for (area, panel) in here.split_evenly((1, columns)).iter().zip(*row) {
                panel.draw(area, format)?;
            }
            rest = below;
        }
        root.present()
    }
}

impl BarPanel {
    fn draw(&self, area: &Area, format: &dyn Fn(f64) -> String) -> DrawResult {
        let width = area.dim_in_pixel().0 as i32;
        area.draw(&Text::new(printable(&self.title), (MARGIN, 8), font(14)))?;
        let room = (width - NAMES - VALUES - 2 * MARGIN).max(1);
        let left = MARGIN + NAMES;
        for (at, bar) in self.bars.iter().enumerate() {
            let top = (TITLE + BAR * at as u32) as i32;
            let name = Text::new(printable(&bar.name), (MARGIN, top + 2), font(12));
            area.draw(&name)?;
            let length = bar
                .value
                .map_or(0, |value| (self.share(value) * f64::from(room)) as i32);
            let corners = [(left, top + 1), (left + length, top + BAR as i32 - 4)];
            let style = match bar.own {
                true => colour(1).filled(),
                false => NEUTRAL.mix(0.6).filled(),
            };
            area.draw(&Rectangle::new(corners, style))?;
            let value = bar.value.map_or_else(|| "-".into(), format);
            area.draw(&Text::new(value, (left + length + 5, top + 2), font(12)))?;
        }
        Ok(())
    }

    /// Length of a bar as a share of the longest.
    fn share(&self, value: f64) -> f64 {
        let values = || {
            self.bars
                .iter()
                .filter_map(|bar| bar.value)
                .filter(|v| *v > 0.0)
        };
        let most = values().fold(0.0, f64::max);
        if value <= 0.0 || most <= 0.0 {
            return 0.0;
        }
        if !self.logarithmic {
            return value / most;
        }
        // the shortest keeps a visible length
        let least = values().fold(most, f64::min) / 2.0;
        (value / least).ln() / (most / least).ln()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panel(logarithmic: bool) -> BarPanel {
        let bar = |(name, value): (&str, Option<f64>)| Bar {
            name: name.into(),
            value,
            own: false,
        };
        let bars = [
            ("a", Some(1.0)),
            ("b", Some(100.0)),
            ("c", None),
            ("d", Some(0.0)),
        ];
        BarPanel {
            title: "t".into(),
            bars: bars.map(bar).to_vec(),
            logarithmic,
        }
    }

    #[test]
    fn the_longest_bar_fills_the_room_and_the_shortest_can_be_seen() {
        let (plain, logs) = (panel(false), panel(true));
        assert_eq!([1.0, 100.0, 0.0].map(|v| plain.share(v)), [0.01, 1.0, 0.0]);
        assert_eq!(logs.share(100.0), 1.0);
        assert!(logs.share(1.0) > 0.1 && logs.share(1.0) < 0.2);
        assert_eq!(logs.share(0.0), 0.0);
    }

    #[test]
    fn every_bar_is_drawn_with_its_name_and_value() {
        let figure = BarFigure {
            columns: 2,
            panels: vec![panel(false), panel(true), BarPanel::default()],
        };
        let svg = figure.svg(&|value| format!("<{value}>")).unwrap();
        let document = roxmltree::Document::parse(&svg).unwrap();
        let texts: Vec<&str> = document
            .descendants()
            .filter(|node| node.is_text())
            .filter_map(|node| node.text().map(str::trim))
            .filter(|text| !text.is_empty())
            .collect();
        for (word, count) in [("a", 2), ("<100>", 2), ("c", 2), ("-", 2)] {
            assert_eq!(
                texts.iter().filter(|text| **text == word).count(),
                count,
                "{word}"
            );
        }
    }
}
