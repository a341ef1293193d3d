//! Figures as SVG: panels of lines with a legend, readable on light and on dark pages.

use std::ops::Range;

use plotters::chart::MeshStyle;
use plotters::coord::Shift;
use plotters::coord::ranged1d::{Ranged, ValueFormatter};
use plotters::prelude::*;

use crate::volume::printable;

/// Most series of a figure: more colours are hard to tell apart.
pub const SERIES_MAX: usize = COLOURS.len();
/// Of medium lightness, so that they stand out from white and from black.
const COLOURS: [RGBColor; 8] = [
    RGBColor(0x3f, 0x86, 0xd6),
    RGBColor(0xdd, 0x77, 0x2f),
    RGBColor(0x35, 0x9f, 0x55),
    RGBColor(0xc2, 0x55, 0x9c),
    RGBColor(0x9d, 0x85, 0x2a),
    RGBColor(0x7c, 0x74, 0xdc),
    RGBColor(0xd4, 0x50, 0x50),
    RGBColor(0x2f, 0x9c, 0x9c),
];
/// Of text, axes and grid.
pub const NEUTRAL: RGBColor = RGBColor(0x80, 0x80, 0x80);

pub const WIDTH: u32 = 960;
const PANEL_HEIGHT: u32 = 260;
const LEGEND_LINE: u32 = 20;
const COLUMNS: usize = 2;

/// How far a line stands out from others of its series.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stroke {
    Bold,
    Plain,
    Faint,
}

#[derive(Debug)]
pub struct Line {
    /// Which entry of the legend it belongs to, below [`SERIES_MAX`].
    pub series: usize,
    pub stroke: Stroke,
    /// Finite numbers.
    pub points: Vec<(f64, f64)>,
}

/// Lines over a common range of x.
#[derive(Debug, Default)]
pub struct Panel {
    pub title: String,
    pub lines: Vec<Line>,
    /// Ranges of x that are shaded in the colour of a series.
    pub shades: Vec<(usize, Range<f64>)>,
}

#[derive(Debug)]
pub struct Figure {
    /// What x is, in all panels.
    pub x: String,
    /// Names of the series.
    pub legend: Vec<String>,
    pub panels: Vec<Panel>,
    /// Both axes are logarithmic; points that are not positive are left out, and so are shades.
    pub logarithmic: bool,
}

pub type DrawResult = Result<(), DrawingAreaErrorKind<std::io::Error>>;
pub type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

impl Figure {
    /// The figure as an SVG document.
    ///
    /// # Errors
    /// If the library cannot draw it.
    pub fn svg(&self) -> Result<String, String> {
        let mut text = String::new();
        self.draw(&mut text).map_err(|error| error.to_string())?;
        Ok(text)
    }

    fn draw(&self, text: &mut String) -> DrawResult {
        let rows = self.panels.len().div_ceil(COLUMNS).max(1);
        let legend = LEGEND_LINE * (self.legend.len() as u32 + 1);
        let size = (WIDTH, legend + PANEL_HEIGHT * rows as u32);
        let root = SVGBackend::with_string(text, size).into_drawing_area();
        let (top, rest) = root.split_vertically(legend);
        self.draw_legend(&top)?;
        for (area, panel) in rest.split_evenly((rows, COLUMNS)).iter().zip(&self.panels) {
            match self.logarithmic {
                true => panel.logarithmic().draw(area, &self.x, &power)?,
                false => panel.draw(area, &self.x, &label)?,
            }
        }
        root.present()
    }

    fn draw_legend(&self, area: &Area) -> DrawResult {
        for (series, name) in self.legend.iter().enumerate() {
            let y = (LEGEND_LINE as usize * series + LEGEND_LINE as usize / 2) as i32;
            let swatch = [(16, y), (34, y + 10)];
            area.draw(&Rectangle::new(swatch, colour(series).filled()))?;
            // XML has no control characters.
            area.draw(&Text::new(printable(name), (42, y - 2), font(13)))?;
        }
        Ok(())
    }
}

/// What stands at a place of an axis.
type Label = dyn Fn(&f64) -> String;

impl Panel {
    /// The panel with the logarithms of all numbers.
    fn logarithmic(&self) -> Panel {
        let point = |&(x, y): &(f64, f64)| (x > 0.0 && y > 0.0).then(|| (x.log10(), y.log10()));
        let line = |line: &Line| Line {
            points: line.points.iter().filter_map(point).collect(),
            ..*line
        };
        Panel {
            title: self.title.clone(),
            lines: self.lines.iter().map(line).collect(),
            shades: Vec::new(),
        }
    }

    fn draw(&self, area: &Area, x: &str, label: &Label) -> DrawResult {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let across = range(points().map(|point| point.0), 0.0);
        let up = range(points().map(|point| point.1), 0.05);
        let mut chart = ChartBuilder::on(area)
            .caption(&self.title, font(15))
            .margin(10)
            .x_label_area_size(36)
            .y_label_area_size(58)
            .build_cartesian_2d(across, up.clone())?;
        mesh(&mut chart)
            .x_desc(x)
            .x_label_formatter(&|value| label(value))
            .y_label_formatter(&|value| label(value))
            .draw()?;
        for (series, shaded) in &self.shades {
            let corners = [(shaded.start, up.start), (shaded.end, up.end)];
            let shade = Rectangle::new(corners, colour(*series).mix(0.1).filled());
            chart.draw_series(std::iter::once(shade))?;
        }
        for line in &self.lines {
            let (width, opacity) = match line.stroke {
                Stroke::Bold => (2, 1.0),
                Stroke::Plain => (1, 1.0),
                Stroke::Faint => (1, 0.5),
            };
            let style = colour(line.series).mix(opacity).stroke_width(width);
            chart.draw_series(LineSeries::new(line.points.iter().copied(), style))?;
        }
        Ok(())
    }
}

/// What has this logarithm, if that is a whole number.
fn power(logarithm: &f64) -> String {
    const UNITS: [&str; 12] = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E", "Z", "Y"];
    let whole = logarithm.round();
    if (whole - logarithm).abs() > 1e-6 {
        return String::new();
    }
    let unit = UNITS.get((whole.div_euclid(3.0) + 3.0) as usize);
    let digits = ["1", "10", "100"][whole.rem_euclid(3.0) as usize % 3];
    format!("{digits}{}", unit.unwrap_or(&"?"))
}

/// Axes and grid of a chart, as all charts have them.
pub fn mesh<'a, 'b, DB, X, Y>(
    chart: &'b mut ChartContext<'a, DB, Cartesian2d<X, Y>>,
) -> MeshStyle<'a, 'b, X, Y, DB>
where
    DB: DrawingBackend,
    X: Ranged<ValueType = f64> + ValueFormatter<f64>,
    Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let mut mesh = chart.configure_mesh();
    mesh.axis_style(NEUTRAL)
        .bold_line_style(NEUTRAL.mix(0.3))
        .light_line_style(TRANSPARENT)
        .label_style(font(11))
        .axis_desc_style(font(12))
        .x_labels(6)
        .y_labels(6);
    mesh
}

pub fn colour(series: usize) -> RGBColor {
    COLOURS[series % SERIES_MAX]
}

pub fn font(size: i32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&NEUTRAL)
}

/// A number on an axis, without zeros that say nothing.
fn label(value: &f64) -> String {
    let text = format!("{value:.4}");
    let short = text.trim_end_matches('0').trim_end_matches('.');
    match short {
        "-0" | "" => "0".into(),
        short => short.into(),
    }
}

/// The range of some values with a margin on both sides, never empty.
fn range(values: impl Iterator<Item = f64>, margin: f64) -> Range<f64> {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
        (low.min(value), high.max(value))
    });
    if low > high {
        return 0.0..1.0;
    }
    let margin = match high - low {
        // one value in the middle
        0.0 => (0.1 * low.abs()).max(0.5),
        width => margin * width,
    };
    low - margin..high + margin
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_never_empty() {
        assert_eq!(range([].into_iter(), 0.1), 0.0..1.0);
        assert_eq!(range([3.0, 3.0].into_iter(), 0.0), 2.5..3.5);
        assert_eq!(range([2.0, 1.0].into_iter(), 0.5), 0.5..2.5);
    }

    #[test]
    fn powers_of_ten_have_labels_and_nothing_else_has() {
        let labels = [-6.0, -1.0, 0.0, 2.0, 3.0, 5.0, 3.5].map(|v| power(&v));
        assert_eq!(labels, ["1u", "100m", "1", "100", "1k", "100k", ""]);
    }

    #[test]
    fn labels_are_short() {
        assert_eq!(
            ["0", "0", "10", "-0.25", "12000"],
            [0.0, -0.0, 10.0, -0.25, 12e3]
                .map(|v| label(&v))
                .each_ref()
                .map(String::as_str)
        );
    }
}
