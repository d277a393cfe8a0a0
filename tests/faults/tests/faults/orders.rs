//! Jobs to ask for: all kinds of origins, priorities, and numbers of files.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use branchline_branch_tests::{Branch, random_bytes, sha256_hex};
use serde_json::{Value, json};

use crate::MEBIBYTE;

/// Origin directives: files below `whole` come in one piece or not at all; those below `busy` not before the
/// origin has the file `open`: it names a time that no download waits for by itself.
pub(crate) const DIRECTIVES: &str = r#"
    location /whole/ { max_ranges 0; }
    location /busy/ { if (!-f "$document_root/open") { add_header Retry-After 3600 always; return 503; } }
"#;

/// How an origin has a file, and what is known of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flavour {
    /// With a manifest.
    Published,
    /// Without.
    Plain,
    /// Without, but the job knows its SHA-256.
    Digest,
    /// From an origin without ranges.
    Whole,
    /// From an origin that is busy until [`open`].
    Busy,
    /// Not there until [`open`].
    Late,
}

impl Flavour {
    fn folder(self) -> &'static str {
        match self {
            Self::Published | Self::Plain | Self::Digest => "files",
            Self::Whole => "whole",
            Self::Busy => "busy",
            Self::Late => "late",
        }
    }
}

/// What some jobs have in common.
#[derive(Debug, Clone, Copy)]
struct Shape {
    files: &'static [(Flavour, usize)],
    priority: &'static str,
    completes: bool,
    starts: bool,
}

const fn shape(files: &'static [(Flavour, usize)], priority: &'static str) -> Shape {
    Shape {
        files,
        priority,
        completes: true,
        starts: true,
    }
}

/// Orders go through these in turn. What comes in one piece is small, for a kill loses all of it.
const SHAPES: [Shape; 14] = [
    shape(&[(Flavour::Published, 4 * MEBIBYTE)], "normal"),
    shape(&[(Flavour::Plain, 3 * MEBIBYTE)], "normal"),
    shape(&[(Flavour::Digest, 2 * MEBIBYTE)], "high"),
    shape(
        &[
            (Flavour::Published, MEBIBYTE),
            (Flavour::Digest, MEBIBYTE),
            (Flavour::Plain, MEBIBYTE / 2),
            (Flavour::Whole, MEBIBYTE / 16),
        ],
        "normal",
    ),
    shape(&[(Flavour::Busy, MEBIBYTE / 4)], "foreground"),
    shape(&[(Flavour::Late, MEBIBYTE / 4)], "high"),
    Shape {
        completes: false,
        ..shape(&[(Flavour::Published, MEBIBYTE)], "high")
    },
    shape(&[(Flavour::Published, 2 * MEBIBYTE)], "foreground"),
    shape(&[(Flavour::Whole, MEBIBYTE / 8)], "normal"),
    shape(
        &[(Flavour::Plain, MEBIBYTE), (Flavour::Late, MEBIBYTE / 4)],
        "normal",
    ),
    Shape {
        starts: false,
        ..shape(&[(Flavour::Digest, 3 * MEBIBYTE)], "low")
    },
    Shape {
        completes: false,
        ..shape(
            &[
                (Flavour::Plain, MEBIBYTE),
                (Flavour::Published, MEBIBYTE / 2),
            ],
            "foreground",
        )
    },
    shape(&[(Flavour::Published, MEBIBYTE / 4); 8], "normal"),
    shape(&[(Flavour::Plain, 2 * MEBIBYTE)], "low"),
];

/// A job that may be asked for, under its name.
#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) name: String,
    pub(crate) files: Vec<Wanted>,
    pub(crate) priority: &'static str,
    /// It completes itself.
    pub(crate) completes: bool,
    pub(crate) starts: bool,
    /// What is posted to the agent.
    pub(crate) body: Value,
}

/// One file of an order: what must stand where in the end.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) target: PathBuf,
    pub(crate) flavour: Flavour,
    pub(crate) length: usize,
    seed: u64,
}

impl Wanted {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        random_bytes(self.seed, self.length)
    }

    fn name(&self) -> String {
        format!("{}/{}.bin", self.flavour.folder(), self.seed)
    }
}

impl Order {
    /// Its job may be in error: not all of its files are there.
    pub(crate) fn may_fail(&self) -> bool {
        self.files.iter().any(|file| file.flavour == Flavour::Late)
    }
}

/// So many orders, whose files the origin has, but for late ones. `notify` gives each its channel.
pub(crate) fn prepare(
    branch: &Branch,
    count: usize,
    notify: impl Fn(usize) -> Value,
) -> Result<Vec<Order>> {
    for flavour in [Flavour::Plain, Flavour::Whole, Flavour::Busy, Flavour::Late] {
        fs::create_dir(branch.www(flavour.folder()))?;
    }
    let targets = branch.machine(0).home().join("targets");
    fs::create_dir(targets)?;
    (0..count)
        .map(|number| order(branch, number, notify(number)))
        .collect()
}

fn order(branch: &Branch, number: usize, notify: Value) -> Result<Order> {
    let shape = SHAPES[number % SHAPES.len()];
    let wanted = |(index, (flavour, length)): (usize, &(Flavour, usize))| Wanted {
        target: (branch.machine(0).home()).join(format!("targets/{number}-{index}")),
        flavour: *flavour,
        length: *length,
        seed: (1_000 * (number + 1) + index) as u64,
    };
    let files: Vec<Wanted> = shape.files.iter().enumerate().map(wanted).collect();
    let specs = files.iter().map(|file| file_spec(branch, file));
    let specs = specs.collect::<Result<Vec<_>>>()?;
    let name = format!("order-{number}");
    let settings = json!({
        "name": name, "priority": shape.priority, "auto_complete": shape.completes,
        "notify": notify, "retry": {"min_delay_seconds": 1, "max_delay_seconds": 4},
    });
    Ok(Order {
        body: json!({"settings": settings, "files": specs, "start": shape.starts}),
        name,
        files,
        priority: shape.priority,
        completes: shape.completes,
        starts: shape.starts,
    })
}

fn file_spec(branch: &Branch, file: &Wanted) -> Result<Value> {
    let bytes = file.bytes();
    let url = match file.flavour {
        Flavour::Late => branch.url(&file.name()),
        Flavour::Published => branch.publish(&file.name(), &bytes)?,
        Flavour::Plain | Flavour::Digest | Flavour::Whole | Flavour::Busy => {
            branch.place(&file.name(), &bytes)?
        }
    };
    let mut spec = json!({"url": url, "path": file.target.to_str().context("UTF-8")?});
    if file.flavour == Flavour::Digest {
        spec["digest"] = json!({"sha256": sha256_hex(&bytes)});
    }
    Ok(spec)
}

/// From now on the origin has and gives everything.
pub(crate) fn open(branch: &Branch, orders: &[Order]) -> Result<()> {
    let late = orders.iter().flat_map(|order| &order.files);
    for file in late.filter(|file| file.flavour == Flavour::Late) {
        branch.place(&file.name(), &file.bytes())?;
    }
    branch.place("open", b"").map(drop)
}
