//! Curves of a bench as an SVG picture.
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

/// Draws `curves` into the file `path`; the y axis begins at zero.
pub(super) fn draw(path: &Path, caption: Caption, curves: &[Curve]) -> Result<(), TaskError> {
    let svg = picture(caption, curves).map_err(|error| TaskError::Picture {
        path: path.to_owned(),
        why: error.to_string(),
    })?;
    std::fs::write(path, svg).map_err(|e| TaskError::io(path, e))
}

type DrawError = DrawingAreaErrorKind<<SVGBackend<'static> as DrawingBackend>::ErrorType>;

fn picture(caption: Caption, curves: &[Curve]) -> Result<String, DrawError> {
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let most = |pick: fn(&(f64, f64)) -> f64| points().map(pick).fold(0.0, f64::max);
    let least_x = points().map(|point| point.0).fold(f64::MAX, f64::min);
    let (most_x, most_y) = (most(|point| point.0), most(|point| point.1));
    let mut svg = String::new();
    if most_x > least_x {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(caption.title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(42)
            .y_label_area_size(64)
            .build_cartesian_2d(least_x..most_x, 0.0..most_y * 1.1)?;
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
}
