//! Curves and bars of a bench as an SVG picture.
//!
//! Owns: how a picture looks. Never: what is measured. Called by the benches.

use crate::error::TaskError;
use plotters::prelude::*;
use std::path::Path;

/// Width and height in pixels.
const SIZE: (u32, u32) = (760, 380);

/// One curve.
#[derive(Debug, Clone)]
pub(super) struct Curve {
    /// What the legend says.
    pub(super) name: &'static str,
    /// Points, by x.
    pub(super) points: Vec<(f64, f64)>,
}

/// Names of a picture and its axes, with units.
#[derive(Debug, Clone, Copy)]
pub(super) struct Caption {
    /// Above the picture.
    pub(super) title: &'static str,
    /// Below the x axis.
    pub(super) x: &'static str,
    /// Beside the y axis.
    pub(super) y: &'static str,
}

/// Draws `curves` into the file `path`; the y axis begins at zero, or below if values do.
pub(super) fn draw(path: &Path, caption: Caption, curves: &[Curve]) -> Result<(), TaskError> {
    let svg = picture(caption, curves).map_err(|error| TaskError::Picture {
        path: path.to_owned(),
        why: error.to_string(),
    })?;
    std::fs::write(path, svg).map_err(|e| TaskError::io(path, e))
}

/// One bar.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bar {
    /// Beside it.
    pub(super) name: &'static str,
    /// Its length.
    pub(super) value: f64,
    /// The range of what it stands for.
    pub(super) least: f64,
    /// The same.
    pub(super) most: f64,
}

/// Height of a bar and of the space it has, and where bars begin, in pixels.
const BAR_HEIGHT: i32 = 22;
const BAR_SPACE: i32 = 44;
const BARS_LEFT: i32 = 210;

/// Draws `bars` below each other into the file `path`, each with its value and a line for its range.
pub(super) fn draw_bars(path: &Path, title: &str, bars: &[Bar]) -> Result<(), TaskError> {
    let svg = bar_picture(title, bars).map_err(|error| TaskError::Picture {
        path: path.to_owned(),
        why: error.to_string(),
    })?;
    std::fs::write(path, svg).map_err(|e| TaskError::io(path, e))
}

fn bar_picture(title: &str, bars: &[Bar]) -> Result<String, DrawError> {
    let most = bars.iter().map(|bar| bar.most.max(bar.value)).fold(0.0, f64::max);
    let width = i32::try_from(SIZE.0).unwrap_or(i32::MAX);
    // Behind the longest range there is room for its value.
    let scale = f64::from(width - BARS_LEFT - 100) / most.max(f64::MIN_POSITIVE);
    let x = |value: f64| BARS_LEFT + (value * scale).round() as i32;
    let rows = u32::try_from(bars.len()).unwrap_or(0);
    let mut svg = String::new();
    let area =
        SVGBackend::with_string(&mut svg, (SIZE.0, 60 + BAR_SPACE.unsigned_abs() * rows)).into_drawing_area();
    area.fill(&WHITE)?;
    area.draw(&Text::new(title.to_owned(), (16, 16), ("sans-serif", 18)))?;
    for (number, bar) in (0..).zip(bars) {
        let top = 52 + BAR_SPACE * number;
        let middle = top + BAR_HEIGHT / 2;
        area.draw(&Text::new(bar.name, (16, top + 4), ("sans-serif", 14)))?;
        let fill = Palette99::pick(usize::try_from(number).unwrap_or(0)).filled();
        let corners = [
            (BARS_LEFT, top),
            (x(bar.value).max(BARS_LEFT + 1), top + BAR_HEIGHT),
        ];
        area.draw(&Rectangle::new(corners, fill))?;
        area.draw(&PathElement::new(
            [(x(bar.least), middle), (x(bar.most), middle)],
            BLACK,
        ))?;
        for end in [bar.least, bar.most] {
            area.draw(&PathElement::new(
                [(x(end), middle - 5), (x(end), middle + 5)],
                BLACK,
            ))?;
        }
        let value = format!("{:.3} s", bar.value);
        area.draw(&Text::new(
            value,
            (x(bar.most.max(bar.value)) + 10, top + 4),
            ("sans-serif", 14),
        ))?;
    }
    area.present()?;
    drop(area);
    Ok(svg)
}

type DrawError = DrawingAreaErrorKind<<SVGBackend<'static> as DrawingBackend>::ErrorType>;

fn picture(caption: Caption, curves: &[Curve]) -> Result<String, DrawError> {
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let most = |pick: fn(&(f64, f64)) -> f64| points().map(pick).fold(0.0, f64::max);
    let least_x = points().map(|point| point.0).fold(f64::MAX, f64::min);
    let (most_x, most_y) = (most(|point| point.0), most(|point| point.1));
    let least_y = points().map(|point| point.1).fold(0.0, f64::min);
    // Of values that are all nought a picture shows a line at the bottom.
    let span = if most_y > least_y { most_y - least_y } else { 1.0 };
    // Room at the ends, so that no line lies on the frame.
    let (low, high) = (
        if least_y < 0.0 { least_y - 0.1 * span } else { 0.0 },
        least_y + 1.1 * span,
    );
    let mut svg = String::new();
    if most_x > least_x {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(caption.title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(42)
            .y_label_area_size(64)
            .build_cartesian_2d(least_x..most_x, low..high)?;
        chart
            .configure_mesh()
            .x_desc(caption.x)
            .y_desc(caption.y)
            .light_line_style(WHITE)
            .axis_desc_style(("sans-serif", 14))
            .draw()?;
        for (index, curve) in curves.iter().enumerate() {
            let style = Palette99::pick(index).stroke_width(2);
            chart
                .draw_series(LineSeries::new(curve.points.iter().copied(), style))?
                .label(curve.name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
        }
        if curves.len() > 1 {
            chart
                .configure_series_labels()
                .border_style(BLACK.mix(0.2))
                .background_style(WHITE.mix(0.8))
                .position(SeriesLabelPosition::LowerRight)
                .draw()?;
        }
        area.present()?;
    }
    Ok(svg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_holds_every_curve() {
        let path = std::env::temp_dir().join(format!("xtask-chart-{}.svg", std::process::id()));
        let curve = |name| Curve {
            name,
            points: vec![(1.0, 2.0), (2.0, 3.0)],
        };
        let caption = Caption {
            title: "title",
            x: "count",
            y: "MiB",
        };
        draw(&path, caption, &[curve("one"), curve("other")]).unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(svg.matches("<polyline").count() >= 2, "{svg}");
        for word in ["title", "count", "MiB", "one", "other"] {
            assert!(svg.contains(word), "{word} is not in {svg}");
        }
    }

    #[test]
    fn every_bar_has_its_length_and_its_value() {
        let bar = |name, value: f64| Bar {
            name,
            value,
            least: value / 2.0,
            most: value,
        };
        let svg = bar_picture("title", &[bar("long", 4.0), bar("half", 2.0), bar("none", 0.0)]).unwrap();
        for word in ["title", "long", "half", "none", "4.000 s", "2.000 s", "0.000 s"] {
            assert!(svg.contains(word), "{word} is not in {svg}");
        }
        let length = |index: usize| -> i32 {
            let (red, green, blue) = Palette99::pick(index).rgb();
            let fill = format!("fill=\"#{red:02X}{green:02X}{blue:02X}\"");
            let line = svg
                .lines()
                .find(|line| line.contains("<rect") && line.contains(&fill))
                .unwrap();
            let width = line.split("width=\"").nth(1).unwrap().split('"').next().unwrap();
            width.parse().unwrap()
        };
        assert!((length(0) - 2 * length(1)).abs() <= 2, "{svg}");
        assert_eq!(length(2), 1);
        let path = Path::new("/nowhere/x.svg");
        let error = draw_bars(path, "", &[bar("x", 1.0)]).unwrap_err();
        assert!(error.to_string().contains("/nowhere/x.svg"), "{error}");
    }

    #[test]
    fn a_place_that_cannot_be_written_is_named() {
        let caption = Caption {
            title: "",
            x: "",
            y: "",
        };
        let curve = Curve {
            name: "",
            points: vec![(1.0, 2.0), (2.0, 3.0)],
        };
        let error = draw(Path::new("/nowhere/x.svg"), caption, &[curve]).unwrap_err();
        assert!(error.to_string().contains("/nowhere/x.svg"), "{error}");
    }

    /// Nothing that grew, and something that went: both have an axis with numbers.
    #[test]
    fn noughts_and_less_are_drawn() {
        let caption = Caption {
            title: "t",
            x: "x",
            y: "y",
        };
        let of = |points| picture(caption, &[Curve { name: "c", points }]).unwrap();
        let nought = of(vec![(0.0, 0.0), (1.0, 0.0)]);
        assert!(nought.contains("0.5") && !nought.contains("NaN"), "{nought}");
        let less = of(vec![(0.0, 0.0), (1.0, -20.0)]);
        assert!(less.contains("-20"), "{less}");
    }
}
