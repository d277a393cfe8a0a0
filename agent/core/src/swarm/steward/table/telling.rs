//! Whom a swarm's members are told of, and who fetches its manifest.

use std::time::Instant;

use rand::Rng;
use rand::seq::SliceRandom;

use super::super::{
    HOLDERS_NAMED_OF, MANIFEST_FANOUT, MANIFEST_LEASE, NEIGHBOURS_TOLD, PEERS_REFRESHED,
    REFRESH_EVERY,
};
use super::{Member, Table};
use crate::PeerId;
use crate::swarm::{Answer, ManifestLease, SwarmPeer};

impl Table {
    pub(super) fn somebody_serves(&self) -> bool {
        !self.serving.is_empty() || !self.announcers.is_empty()
    }

    pub(super) fn manifest_for(&mut self, now: Instant, id: PeerId) -> ManifestLease {
        let asks = |member: &Member| member.want.manifest && !member.has_manifest;
        if !self.members.get(&id).is_some_and(asks) {
            return ManifestLease::NotAsked;
        }
        if self.somebody_serves() {
            return ManifestLease::Wait;
        }
        let fetched_by_another = self
            .manifest_fetcher
            .is_some_and(|(fetcher, until)| fetcher != id && now < until);
        if fetched_by_another {
            self.manifest_waiters.push(id);
            return ManifestLease::Wait;
        }
        self.manifest_fetcher = Some((id, now + MANIFEST_LEASE));
        ManifestLease::Fetch
    }

    /// As soon as somebody has the manifest, a few of those who wait are told, and a few more by
    /// each that has got it: all at once would be too much for one.
    pub(super) fn serve_manifest_waiters(&mut self, now: Instant, rng: &mut impl Rng) {
        let fetching = self.manifest_fetcher.is_some_and(|(_, until)| now < until);
        let mut room = match (self.somebody_serves(), fetching) {
            (true, _) => std::mem::take(&mut self.manifest_room),
            (false, true) => 0,
            (false, false) => 1,
        };
        while room > 0
            && let Some(id) = self.manifest_waiters.pop()
        {
            let manifest = self.manifest_for(now, id);
            if manifest == ManifestLease::NotAsked {
                continue;
            }
            let peers = self.peers_for(now, rng, id, manifest);
            let answer = Answer {
                manifest,
                peers,
                ..Answer::default()
            };
            self.said.push((id, answer));
            room -= 1;
        }
    }

    /// Whom a member is told of: as many as it lacks at first, a few more from time to time.
    pub(super) fn peers_for(
        &mut self,
        now: Instant,
        rng: &mut impl Rng,
        id: PeerId,
        manifest: ManifestLease,
    ) -> Vec<SwarmPeer> {
        let Some(member) = self.members.get_mut(&id).filter(|m| !m.held.is_full()) else {
            return Vec::new();
        };
        let count = if member.has_manifest {
            let lacks = NEIGHBOURS_TOLD.saturating_sub(member.told);
            let refresh = now >= member.told_at + REFRESH_EVERY;
            lacks.max(if refresh { PEERS_REFRESHED } else { 0 })
        } else if manifest == ManifestLease::Wait {
            MANIFEST_FANOUT
        } else {
            0
        };
        let mut peers = self.serving.draw(rng, count, id);
        // Some that hold everything, drawn anew each time: the same few would serve everybody.
        let mut holders: Vec<PeerId> = self.announcers.iter().copied().collect();
        holders.retain(|holder| *holder != id && !peers.contains(holder));
        holders.shuffle(rng);
        let room = count - peers.len();
        holders.truncate(room.max(count / HOLDERS_NAMED_OF));
        peers.truncate(count - holders.len());
        peers.extend(holders);
        peers.iter().for_each(|peer| self.serving.name(*peer));
        if member.has_manifest && !peers.is_empty() {
            member.told += peers.len();
            member.told_at = now;
        }
        if member.told >= NEIGHBOURS_TOLD {
            self.needy.remove(&id);
        }
        peers.into_iter().map(serving).collect()
    }

    /// Tells members that have few neighbours who has come.
    pub(super) fn tell_news(&mut self, now: Instant, rng: &mut impl Rng) {
        self.news_at = None;
        let news = std::mem::take(&mut self.news);
        for id in std::mem::take(&mut self.needy) {
            let Some(member) = self.members.get_mut(&id) else {
                continue;
            };
            let lacks = NEIGHBOURS_TOLD.saturating_sub(member.told);
            let peers: Vec<_> = news.draw(rng, lacks, id).into_iter().map(serving).collect();
            peers.iter().for_each(|named| self.serving.name(named.peer));
            member.told += peers.len();
            member.told_at = now;
            if member.told < NEIGHBOURS_TOLD {
                self.needy.insert(id);
            }
            if !peers.is_empty() {
                let answer = Answer {
                    peers,
                    ..Answer::default()
                };
                self.said.push((id, answer));
            }
        }
    }
}

fn serving(peer: PeerId) -> SwarmPeer {
    SwarmPeer {
        peer,
        has_manifest: true,
    }
}
