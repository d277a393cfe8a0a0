//! The growth of the figures over the number of members, as SVG.

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use crate::table::Row;

/// One panel: what it shows of a row, and the goal it is held against.
struct Panel {
    title: &'static str,
    value: fn(&Row) -> f64,
    goal: Option<f64>,
}

const PANELS: [Panel; 4] = [
    Panel {
        title: "WAN bytes / file",
        value: |row| row.wan,
        goal: Some(1.05),
    },
    Panel {
        title: "makespan / ideal",
        value: |row| row.makespan,
        goal: Some(1.3),
    },
    Panel {
        title: "control bytes of a member / file, %",
        value: |row| row.control * 100.0,
        goal: Some(1.0),
    },
    Panel {
        title: "largest upload / file",
        value: |row| row.largest_upload,
        goal: Some(8.0),
    },
];

const SIZE: (u32, u32) = (960, 640);
const MEASURED: RGBColor = RGBColor(0x1f, 0x5f, 0xa8);
const GOAL: RGBColor = RGBColor(0xb0, 0x3a, 0x2e);

/// Draws rows of the same join pattern, ascending in members.
///
/// # Errors
/// When the picture cannot be composed, which only a defect could cause.
pub fn growth(rows: &[Row]) -> Result<String> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE).map_err(drawing)?;
        for (area, panel) in root.split_evenly((2, 2)).iter().zip(&PANELS) {
            draw(area, panel, rows)?;
        }
        root.present().map_err(drawing)?;
    }
    Ok(svg)
}

fn draw<Back: DrawingBackend>(
    area: &DrawingArea<Back, plotters::coord::Shift>,
    panel: &Panel,
    rows: &[Row],
) -> Result<()>
where
    Back::ErrorType: 'static,
{
    let points = || {
        rows.iter()
            .map(|row| (f64::from(row.members), (panel.value)(row)))
    };
    let last = points().map(|(x, _)| x).fold(16.0, f64::max);
    let top = points()
        .map(|(_, y)| y)
        .chain(panel.goal)
        .fold(0.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption(panel.title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(34)
        .y_label_area_size(52)
        .build_cartesian_2d((10.0..last * 1.5).log_scale(), 0.0..top * 1.15)
        .map_err(drawing)?;
    chart
        .configure_mesh()
        .x_desc("members")
        .x_labels(5)
        .y_labels(6)
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| format!("{y:.2}"))
        .light_line_style(WHITE)
        .draw()
        .map_err(drawing)?;
    if let Some(goal) = panel.goal {
        let line = [(10.0, goal), (last * 1.5, goal)];
        chart
            .draw_series(LineSeries::new(line, GOAL))
            .map_err(drawing)?;
    }
    chart
        .draw_series(LineSeries::new(points(), MEASURED.stroke_width(2)))
        .map_err(drawing)?;
    chart
        .draw_series(points().map(|point| Circle::new(point, 4, MEASURED.filled())))
        .map_err(drawing)?;
    Ok(())
}

fn drawing<E: std::error::Error>(error: E) -> anyhow::Error {
    anyhow!("drawing the plot: {error}")
}
