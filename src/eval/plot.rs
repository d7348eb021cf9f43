//! What an evaluation found, as pictures that need no colour.
//!
//! Every line has its own dashes and its own marker and carries its name at its end.

use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use super::report::{EvalReport, MethodReport, Run};

const WIDTH: u32 = 900;
const PANEL_HEIGHT: u32 = 420;
/// Room for the names at the ends of the lines.
const NAMES: u32 = 210;
const TEXT: u32 = 15;
/// Height of a line's name, with its spacing.
const NAME_HEIGHT: f64 = 17.0;

/// A picture could not be drawn.
#[derive(Debug, thiserror::Error)]
pub enum PlotError {
    #[error("no run has finished, so there is nothing to draw")]
    Empty,
    #[error("cannot draw the picture: {0}")]
    Drawing(String),
}

impl<E: std::error::Error + Send + Sync> From<DrawingAreaErrorKind<E>> for PlotError {
    fn from(error: DrawingAreaErrorKind<E>) -> Self {
        Self::Drawing(error.to_string())
    }
}

/// A picture: one or more lines over a shared horizontal axis.
struct Panel<'a> {
    title: &'a str,
    across: &'a str,
    up: &'a str,
    /// Whether the upright axis begins at zero, and not near the least value.
    from_zero: bool,
    lines: Vec<Line>,
}

struct Line {
    name: String,
    /// Where it stands among all methods: the same dashes and marker in every panel.
    style: usize,
    /// Ascending in x.
    points: Vec<(f64, f64)>,
}

/// Draws a report as SVG: accuracy against tasks learned, accuracy against prompts where methods
/// differ in them, and the rank of every task where ranks were chosen.
///
/// # Errors
/// When no run has finished.
pub fn plot(report: &EvalReport) -> Result<String, PlotError> {
    let panels: Vec<Panel<'_>> = [
        against_tasks(report),
        against_prompts(report),
        ranks(report),
    ]
    .into_iter()
    .filter(|panel| !panel.lines.is_empty())
    .collect();
    if panels.is_empty() {
        return Err(PlotError::Empty);
    }
    let mut svg = String::new();
    {
        let size = (WIDTH, PANEL_HEIGHT * panels.len() as u32);
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        root.fill(&WHITE)?;
        for (area, panel) in root.split_evenly((panels.len(), 1)).iter().zip(&panels) {
            draw(area, panel)?;
        }
        root.present()?;
    }
    Ok(svg)
}

/// Accuracy over everything seen, after every task; a method that learns all at once is level.
fn against_tasks(report: &EvalReport) -> Panel<'static> {
    let methods = report.methods.iter().enumerate();
    Panel {
        title: "Accuracy over all classes seen",
        across: "tasks learned",
        up: "accuracy, %",
        from_zero: false,
        lines: methods
            .map(|(style, (name, method))| Line {
                name: name.clone(),
                style,
                points: sequence(method, report.tasks),
            })
            .collect(),
    }
}

fn sequence(method: &MethodReport, tasks: usize) -> Vec<(f64, f64)> {
    if method.aaa.is_none() {
        return vec![(1.0, method.acc), (tasks.max(1) as f64, method.acc)];
    }
    let overall = |run: &Run, row: &Vec<f64>| {
        let images: f64 = run.images[..row.len()].iter().sum::<usize>().max(1) as f64;
        let right = row.iter().zip(&run.images).map(|(a, &n)| a * n as f64);
        right.sum::<f64>() / images
    };
    (0..method.matrix.len())
        .map(|t| {
            let rows = method
                .runs
                .iter()
                .filter_map(|run| Some((run, run.matrix.get(t)?)));
            let all: Vec<f64> = rows.map(|(run, row)| overall(run, row)).collect();
            ((t + 1) as f64, super::metrics::mean(&all))
        })
        .collect()
}

/// Final accuracy of methods that were run with several numbers of prompts.
fn against_prompts(report: &EvalReport) -> Panel<'static> {
    let mut lines: Vec<Line> = Vec::new();
    for (name, method) in &report.methods {
        let is_prompts = |word: &&str| word.starts_with("prompts=");
        let Some(prompts) = name
            .split(' ')
            .find(is_prompts)
            .and_then(|word| word["prompts=".len()..].parse::<f64>().ok())
        else {
            continue;
        };
        let rest: Vec<&str> = name.split(' ').filter(|word| !is_prompts(word)).collect();
        let rest = rest.join(" ");
        let point = (prompts, method.acc);
        match lines.iter_mut().find(|line| line.name == rest) {
            Some(line) => line.points.push(point),
            None => lines.push(Line {
                name: rest,
                style: lines.len(),
                points: vec![point],
            }),
        }
    }
    for line in &mut lines {
        line.points.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    Panel {
        title: "Accuracy after the last task",
        across: "prompt tokens",
        up: "accuracy, %",
        from_zero: false,
        lines,
    }
}

/// The rank of what every task added, on average over the runs in which it added something.
fn ranks(report: &EvalReport) -> Panel<'static> {
    let of_method = |method: &MethodReport| -> Vec<(f64, f64)> {
        let tasks = method.runs.iter().map(|run| run.ranks.len()).max();
        let mean_rank = |task: usize| {
            let chosen: Vec<f64> = method
                .runs
                .iter()
                .filter_map(|run| Some((*run.ranks.get(task)?)? as f64))
                .collect();
            let mean = super::metrics::mean(&chosen);
            (!chosen.is_empty()).then_some(((task + 1) as f64, mean))
        };
        (0..tasks.unwrap_or(0)).filter_map(mean_rank).collect()
    };
    let methods = report.methods.iter().enumerate();
    Panel {
        title: "Rank of what a task added",
        across: "task",
        up: "rank",
        from_zero: true,
        lines: methods
            .map(|(style, (name, method))| Line {
                name: name.clone(),
                style,
                points: of_method(method),
            })
            .filter(|line| !line.points.is_empty())
            .collect(),
    }
}

type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

fn draw(area: &DrawingArea<SVGBackend<'_>, Shift>, panel: &Panel<'_>) -> Result<(), PlotError> {
    let points = || panel.lines.iter().flat_map(|line| &line.points);
    let across = range(points().map(|p| p.0), 0.5);
    let least = panel.from_zero.then_some(0.0);
    let up = range(points().map(|p| p.1).chain(least), 2.0);
    let mut chart: Chart<'_, '_> = ChartBuilder::on(area)
        .caption(panel.title, ("sans-serif", TEXT + 4))
        .margin(14)
        .margin_right(NAMES)
        .x_label_area_size(42)
        .y_label_area_size(56)
        .build_cartesian_2d(across, up)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.12))
        .x_desc(panel.across)
        .y_desc(panel.up)
        // Tasks and prompts are counted: there is nothing to read halfway between two.
        .x_label_formatter(&|x| match x.fract().abs() < 1e-6 {
            true => number(x),
            false => String::new(),
        })
        .y_label_formatter(&number)
        .label_style(("sans-serif", TEXT - 2))
        .axis_desc_style(("sans-serif", TEXT))
        .draw()?;
    for line in &panel.lines {
        draw_line(&mut chart, line)?;
    }
    draw_names(area, &chart, &panel.lines)
}

/// Dash and gap in pixels; a gap of 0 is a solid line.
const DASHES: [(u32, u32); 5] = [(8, 0), (9, 5), (3, 4), (16, 5), (6, 9)];
/// Dark enough on white to read as different greys do too.
const INKS: [RGBColor; 5] = [
    RGBColor(0, 0, 0),
    RGBColor(0, 90, 160),
    RGBColor(170, 60, 0),
    RGBColor(0, 110, 80),
    RGBColor(130, 40, 120),
];
/// Markers before they repeat in white.
const SHAPES: usize = 6;

fn ink(style: usize) -> RGBColor {
    INKS[style % INKS.len()]
}

fn draw_line(chart: &mut Chart<'_, '_>, line: &Line) -> Result<(), PlotError> {
    let stroke = ink(line.style).stroke_width(2);
    let points = line.points.iter().copied();
    match DASHES[line.style % DASHES.len()] {
        (_, 0) => chart.draw_series(LineSeries::new(points, stroke))?,
        (dash, gap) => chart.draw_series(DashedLineSeries::new(points, dash, gap, stroke))?,
    };
    let shape = shape(line.style);
    let closed: Vec<(i32, i32)> = shape.iter().chain(shape.first()).copied().collect();
    let fill = match line.style / SHAPES % 2 {
        0 => ink(line.style).filled(),
        _ => WHITE.filled(),
    };
    chart.draw_series(line.points.iter().map(|&at| {
        EmptyElement::at(at)
            + Polygon::new(shape.clone(), fill)
            + PathElement::new(closed.clone(), ink(line.style).stroke_width(2))
    }))?;
    Ok(())
}

/// Corners of a method's marker, in pixels around the point.
fn shape(style: usize) -> Vec<(i32, i32)> {
    match style % SHAPES {
        0 => (0..12)
            .map(|k| (f64::from(k) * std::f64::consts::TAU / 12.0).sin_cos())
            .map(|(sin, cos)| ((5.0 * cos).round() as i32, (5.0 * sin).round() as i32))
            .collect(),
        1 => vec![(-4, -4), (4, -4), (4, 4), (-4, 4)],
        2 => vec![(0, -6), (5, 4), (-5, 4)],
        3 => vec![(0, -6), (6, 0), (0, 6), (-6, 0)],
        4 => vec![(0, 6), (5, -4), (-5, -4)],
        _ => vec![(-6, -2), (6, -2), (6, 2), (-6, 2)],
    }
}

/// Writes every line's name beside its last point, moved apart where they would overlap, with a
/// thin stroke from point to name.
fn draw_names(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    chart: &Chart<'_, '_>,
    lines: &[Line],
) -> Result<(), PlotError> {
    let (left, top) = area.get_base_pixel();
    let mut ends: Vec<(&Line, (i32, i32))> = lines
        .iter()
        .filter_map(|line| Some((line, *line.points.last()?)))
        .map(|(line, end)| {
            let (x, y) = chart.backend_coord(&end);
            (line, (x - left, y - top))
        })
        .collect();
    ends.sort_by_key(|(_, (_, y))| *y);
    let wanted: Vec<f64> = ends.iter().map(|(_, (_, y))| f64::from(*y)).collect();
    let bottom = f64::from(PANEL_HEIGHT) - NAME_HEIGHT;
    let column = (WIDTH - NAMES) as i32 + 26;
    for ((line, (x, y)), height) in ends.iter().zip(apart(&wanted, NAME_HEIGHT, bottom)) {
        let height = height.round() as i32;
        let thin = ink(line.style).mix(0.5).stroke_width(1);
        area.draw(&PathElement::new(
            vec![(x + 8, *y), (column - 4, height)],
            thin,
        ))?;
        let font = ("sans-serif", TEXT).into_font().color(&ink(line.style));
        area.draw(&Text::new(
            line.name.clone(),
            (column, height - TEXT as i32 / 2),
            font,
        ))?;
    }
    Ok(())
}

/// Ascending positions moved as little as needed to lie at least `gap` apart and end at `most`.
fn apart(wanted: &[f64], gap: f64, most: f64) -> Vec<f64> {
    let mut placed: Vec<f64> = Vec::with_capacity(wanted.len());
    for &at in wanted {
        let least = placed.last().map_or(f64::NEG_INFINITY, |last| last + gap);
        placed.push(at.max(least));
    }
    let mut limit = most;
    for at in placed.iter_mut().rev() {
        *at = at.min(limit);
        limit = *at - gap;
    }
    placed
}

/// From the least to the greatest value with a little room, at least `room` in all.
fn range(values: impl Iterator<Item = f64>, room: f64) -> std::ops::Range<f64> {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| {
        (low.min(v), high.max(v))
    });
    let room = (0.06 * (high - low)).max(0.5 * room);
    low - room..high + room
}

/// Without needless decimals.
fn number(value: &f64) -> String {
    match value {
        whole if (whole - whole.round()).abs() < 1e-6 => format!("{whole:.0}"),
        _ => format!("{value:.1}"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    fn method(matrix: &[&[f64]], ranks: &[Option<usize>]) -> MethodReport {
        let matrix: Vec<Vec<f64>> = matrix.iter().map(|row| row.to_vec()).collect();
        let images = vec![10; matrix.last().unwrap().len()];
        MethodReport::of(vec![Run {
            seed: 0,
            parameters: vec![0; images.len()],
            bytes: vec![0; images.len()],
            matrix,
            images,
            ranks: ranks.to_vec(),
            seconds: 1.0,
            peak_training_bytes: None,
            made_with: None,
        }])
        .unwrap()
    }

    fn report(methods: Vec<(&str, MethodReport)>) -> EvalReport {
        EvalReport {
            protocol: "class-incremental".into(),
            data: "photos".into(),
            tasks: 3,
            seeds: 1,
            order_seed: 0,
            resolution: 112,
            model: "small".into(),
            model_hash: String::new(),
            threads: 1,
            complete: true,
            skipped: Vec::new(),
            methods: methods
                .into_iter()
                .map(|(name, method)| (name.to_owned(), method))
                .collect::<BTreeMap<_, _>>(),
        }
    }

    const FALLING: &[&[f64]] = &[&[90.0], &[80.0, 70.0], &[70.0, 60.0, 50.0]];

    #[test]
    fn every_method_has_its_name_beside_its_line() {
        let svg = plot(&report(vec![
            ("fm-lora", method(FALLING, &[Some(16), Some(8), None])),
            ("joint", method(&[&[80.0, 80.0, 80.0]], &[None; 3])),
        ]))
        .unwrap();
        for text in [
            "fm-lora",
            "joint",
            "tasks learned",
            "Rank of what a task added",
        ] {
            assert!(svg.contains(text), "{text} is not in the picture");
        }
        assert!(!svg.contains("prompt tokens"));
    }

    #[test]
    fn accuracy_is_drawn_against_prompts_when_methods_differ_in_them() {
        let with = |name| (name, method(FALLING, &[None; 3]));
        let report = report(vec![
            with("fm-lora prompts=0"),
            with("fm-lora prompts=16"),
            with("fm-lora prompts=4"),
        ]);
        let panel = against_prompts(&report);
        assert_eq!(panel.lines.len(), 1);
        assert_eq!(panel.lines[0].name, "fm-lora");
        let prompts: Vec<f64> = panel.lines[0].points.iter().map(|p| p.0).collect();
        assert_eq!(prompts, [0.0, 4.0, 16.0]);
        assert!(plot(&report).unwrap().contains("prompt tokens"));
    }

    #[test]
    fn the_methods_are_told_apart_without_colour() {
        let looks: BTreeSet<_> = (0..10)
            .map(|style| (DASHES[style % DASHES.len()], shape(style)))
            .collect();
        assert_eq!(looks.len(), 10);
    }

    #[test]
    fn names_move_apart_and_stay_inside() {
        let placed = apart(&[10.0, 11.0, 12.0, 95.0, 99.0], 10.0, 100.0);
        assert!(
            placed
                .windows(2)
                .all(|pair| pair[1] - pair[0] >= 10.0 - 1e-9)
        );
        assert_eq!((placed[0], placed[4]), (10.0, 100.0));
    }

    #[test]
    fn nothing_finished_is_an_error() {
        assert!(matches!(plot(&report(Vec::new())), Err(PlotError::Empty)));
    }
}
