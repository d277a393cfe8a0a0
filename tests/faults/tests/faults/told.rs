//! What webhooks and commands were told, all agents of a run together.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use serde_json::{Deserializer, Value};

/// Notifications by their numbers, each as often as it came.
#[derive(Debug, Default)]
pub(crate) struct Told(BTreeMap<u64, Vec<Value>>);

/// What somebody had to be told: of which job, what, and of which of its files.
pub(crate) type Expected = (u64, &'static str, Option<u64>);

impl Told {
    /// Reads JSON texts one behind another; an unfinished one at the end is still on its way.
    pub(crate) fn read(&mut self, text: &str) -> Result<()> {
        for message in Deserializer::from_str(text).into_iter::<Value>() {
            let message = match message {
                Err(error) if error.is_eof() => break,
                message => message?,
            };
            let id = message["id"].as_u64().context("a number")?;
            self.0.entry(id).or_default().push(message);
        }
        Ok(())
    }

    /// How many there are, and how many came again.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let all: usize = self.0.values().map(Vec::len).sum();
        (self.0.len(), all - self.0.len())
    }

    pub(crate) fn first_missing(&self, expected: &[Expected]) -> Option<Expected> {
        let told: BTreeSet<(u64, &str, Option<u64>)> = self.0.values().flatten().map(key).collect();
        expected.iter().find(|one| !told.contains(*one)).copied()
    }

    /// Numbers are given one after another, and each belongs to one notification: one that never came left a gap.
    pub(crate) fn gaps(&self) -> Vec<u64> {
        let last = self.0.last_key_value().map_or(0, |(id, _)| *id);
        (1..=last).filter(|id| !self.0.contains_key(id)).collect()
    }

    /// Whoever hears a notification again is told so. The order in which two came does not count: a command that a
    /// killed agent began may end after the one that its successor began.
    pub(crate) fn ensure_repeats_say_so(&self) -> Result<()> {
        for (id, messages) in &self.0 {
            let firsts = messages.iter().filter(|m| m["may_be_repeated"] == false);
            ensure!(firsts.count() <= 1, "{id} came as new twice: {messages:?}");
            let others = messages.iter().map(without_mark);
            ensure!(
                others.collect::<BTreeSet<_>>().len() == 1,
                "{id} is not always the same: {messages:?}"
            );
        }
        Ok(())
    }
}

fn key(message: &Value) -> (u64, &str, Option<u64>) {
    let event = message["event"].as_str().unwrap_or_default();
    let file = (event == "file_done").then(|| message["file"].as_u64());
    let job = message["job"].as_u64().unwrap_or_default();
    (job, event, file.flatten())
}

fn without_mark(message: &Value) -> String {
    let mut message = message.clone();
    message["may_be_repeated"] = Value::Null;
    message.to_string()
}
