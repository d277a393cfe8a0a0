//! What the owner of the jobs has been promised, and whether it is so.
//!
//! A request that was answered holds. Of one that was not, nobody knows: it holds or does not, whole, and from then on
//! what is seen must fit one or the other.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::orders::Order;

/// All states of docs/jobs.md.
pub(crate) const STATES: [&str; 9] = [
    "suspended",
    "queued",
    "connecting",
    "transferring",
    "transient_error",
    "error",
    "transferred",
    "acknowledged",
    "cancelled",
];

/// What the owner wants of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    Rest,
    Go,
    Complete,
    Cancel,
}

impl Wish {
    fn allows(self, order: &Order, state: &str) -> bool {
        match self {
            Self::Rest => state == "suspended",
            Self::Complete => ["transferred", "acknowledged"].contains(&state),
            Self::Cancel => state == "cancelled",
            Self::Go => match state {
                "suspended" | "cancelled" => false,
                "acknowledged" => order.completes,
                "error" => order.may_fail(),
                _ => true,
            },
        }
    }
}

/// A job as its owner knows it.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) order: usize,
    /// One of these.
    wishes: Vec<Wish>,
    priorities: Vec<String>,
    revision: u64,
    /// As it was last seen.
    pub(crate) state: String,
    /// All states it was seen in.
    pub(crate) states: BTreeSet<String>,
    /// As many bytes of it as were ever seen here.
    pub(crate) bytes: u64,
}

/// All jobs.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) jobs: BTreeMap<u64, Known>,
    /// Asked for, and no answer came: order and its name.
    in_doubt: BTreeMap<String, usize>,
    /// Requests that were answered.
    pub(crate) answered: u64,
    /// Requests that were not.
    pub(crate) unanswered: u64,
}

impl Ledger {
    pub(crate) fn created(&mut self, number: usize, order: &Order, view: &Value) -> Result<()> {
        let known = Known {
            order: number,
            wishes: vec![if order.starts { Wish::Go } else { Wish::Rest }],
            priorities: vec![order.priority.to_owned()],
            revision: view["revision"].as_u64().context("a revision")?,
            state: view["state"].as_str().context("a state")?.to_owned(),
            states: BTreeSet::new(),
            bytes: 0,
        };
        let id = view["id"].as_u64().context("a number")?;
        let old = self.jobs.insert(id, known);
        ensure!(old.is_none(), "job {id} was given twice");
        Ok(())
    }

    pub(crate) fn creation_in_doubt(&mut self, number: usize, order: &Order) {
        self.in_doubt.insert(order.name.clone(), number);
    }

    /// It has answered that it is so.
    pub(crate) fn promised(&mut self, id: u64, wish: Wish, view: &Value) -> Result<()> {
        self.job(id)?.wishes = vec![wish];
        self.revised(id, view)
    }

    pub(crate) fn wish_in_doubt(&mut self, id: u64, wish: Wish) -> Result<()> {
        self.job(id)?.wishes.push(wish);
        Ok(())
    }

    pub(crate) fn priority_promised(&mut self, id: u64, new: &str, view: &Value) -> Result<()> {
        self.job(id)?.priorities = vec![new.to_owned()];
        self.revised(id, view)
    }

    pub(crate) fn priority_in_doubt(&mut self, id: u64, new: &str) -> Result<()> {
        self.job(id)?.priorities.push(new.to_owned());
        Ok(())
    }

    fn revised(&mut self, id: u64, view: &Value) -> Result<()> {
        let revision = view["revision"].as_u64().context("a revision")?;
        let job = self.job(id)?;
        ensure!(revision >= job.revision, "job {id}: the revision went back");
        job.revision = revision;
        Ok(())
    }

    fn job(&mut self, id: u64) -> Result<&mut Known> {
        self.jobs.get_mut(&id).context("a job we know")
    }

    /// A list of all jobs must be what was promised.
    pub(crate) fn check(&mut self, page: &Value, orders: &[Order]) -> Result<()> {
        let rows = page["jobs"].as_array().context("a list")?;
        ensure!(page["next_after"].is_null(), "more than a page");
        for row in rows {
            let id = row["id"].as_u64().context("a number")?;
            if !self.jobs.contains_key(&id) {
                self.take_up(row, orders)?;
            }
            let known = self.job(id)?;
            let fits = known.see(row, &orders[known.order]);
            fits.with_context(|| format!("promised: {known:?}; found: {row}"))?;
        }
        let found: BTreeSet<u64> = rows.iter().filter_map(|row| row["id"].as_u64()).collect();
        if let Some(lost) = self.jobs.keys().find(|id| !found.contains(id)) {
            bail!("job {lost} is lost: {:?}", self.jobs[lost]);
        }
        // What is not there by now was not taken.
        self.in_doubt.clear();
        Ok(())
    }

    fn take_up(&mut self, row: &Value, orders: &[Order]) -> Result<()> {
        let name = row["name"].as_str().context("a name")?;
        let number = self.in_doubt.remove(name);
        let number = number.with_context(|| format!("nobody asked for this: {row}"))?;
        self.created(number, &orders[number], row)
    }

    /// Whether any job of this order is known, or may be.
    pub(crate) fn has(&self, number: usize) -> bool {
        let in_doubt = self.in_doubt.values().any(|order| *order == number);
        in_doubt || self.jobs.values().any(|job| job.order == number)
    }

    /// How many jobs were ever seen in each state.
    pub(crate) fn states(&self) -> BTreeMap<&str, usize> {
        let count = |state| {
            let seen = |job: &&Known| job.states.contains(state);
            (state, self.jobs.values().filter(seen).count())
        };
        STATES.into_iter().map(count).collect()
    }
}

impl Known {
    fn see(&mut self, row: &Value, order: &Order) -> Result<()> {
        let state = row["state"].as_str().context("a state")?;
        let priority = row["priority"].as_str().context("a priority")?;
        let revision = row["revision"].as_u64().context("a revision")?;
        self.wishes.retain(|wish| wish.allows(order, state));
        self.priorities.retain(|one| one == priority);
        ensure!(!self.wishes.is_empty(), "not the state that was promised");
        ensure!(!self.priorities.is_empty(), "not the priority");
        ensure!(revision >= self.revision, "an old revision");
        ensure!(row["name"] == order.name, "another name");
        ensure!(row["files"] == order.files.len(), "not all files");
        self.revision = revision;
        self.bytes = self.bytes.max(row["bytes"].as_u64().unwrap_or(0));
        self.state = state.to_owned();
        self.states.insert(state.to_owned());
        Ok(())
    }

    pub(crate) fn has_ended(&self) -> bool {
        ["acknowledged", "cancelled"].contains(&self.state.as_str())
    }
}
