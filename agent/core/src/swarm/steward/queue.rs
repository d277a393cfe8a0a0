//! Members in the order in which they came.

use std::collections::BTreeMap;

use crate::PeerId;

/// Each member once.
#[derive(Debug, Default)]
pub(super) struct Queue {
    order: BTreeMap<u64, PeerId>,
    tickets: BTreeMap<PeerId, u64>,
    next: u64,
}

impl Queue {
    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// At the end, unless it is there already.
    pub(super) fn push(&mut self, id: PeerId) {
        if !self.tickets.contains_key(&id) {
            self.tickets.insert(id, self.next);
            self.order.insert(self.next, id);
            self.next += 1;
        }
    }

    pub(super) fn remove(&mut self, id: PeerId) {
        if let Some(ticket) = self.tickets.remove(&id) {
            self.order.remove(&ticket);
        }
    }

    pub(super) fn pop(&mut self) -> Option<PeerId> {
        let (_, id) = self.order.pop_first()?;
        self.tickets.remove(&id);
        Some(id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = PeerId> + '_ {
        self.order.values().copied()
    }

    /// The first one from `ticket` on, and its ticket.
    pub(super) fn first_from(&self, ticket: u64) -> Option<(u64, PeerId)> {
        let (ticket, id) = self.order.range(ticket..).next()?;
        Some((*ticket, *id))
    }
}
