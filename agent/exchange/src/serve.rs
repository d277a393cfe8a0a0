//! The responder's side: accepts connections and answers requests.
//!
//! Reading and verifying happens on the reader threads, a little ahead of what QUIC takes. What a
//! requester does wrong closes its connection; what it does not take in time ends its stream.

mod have_watch;
mod steward;
mod unjoined;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use branchline_core::wire::{
    CloseCode, Have, JoinProof, MAX_ENLIST_BYTES, RequesterMessage, ResponderMessage, Standing,
    WireError, WireMessage,
};
use branchline_core::{PeerId, SegmentRange};
use branchline_hashing::{ContentKey, ProvisionalSegment, SegmentIndex, SwarmId, VerifiedSegment};
use bytes::Bytes;
use quinn::{Connection, SendStream, VarInt};
use tokio::sync::{Semaphore, SemaphorePermit, oneshot, watch};
use tokio::task::{JoinError as TaskError, JoinSet};

use crate::error::PeerFailure;
use crate::options::ExchangeOptions;
use crate::peer_limit::{PeerLimit, PeerPermit};
use crate::proof::{SessionSecret, Side};
use crate::reader_pool::ReaderPool;
use crate::reading::{MessageReader, ReceiveError};
use crate::seat::{Seat, StewardSeat};
use crate::source::{ContentSource, ServedContent};
use crate::tls;
use crate::upload::{UploadCounter, UploadStats};
use have_watch::Feeds;
use unjoined::{Joined, unjoined_for};

/// A reader thread reads at most this much, or one segment, at one time: with segments of 32 KiB one at
/// a time, waking threads cost more than verifying.
const BATCH_BYTES: u64 = 256 << 10;

/// The most segments in a batch; bounds how long a thread is kept where all are short.
const BATCH_SEGMENTS: usize = 32;

/// Batches read before QUIC has taken the one in front.
const BATCHES_AHEAD: usize = 2;

/// Connections of one peer. One is enough for an honest one; a second and third cover those that dial
/// anew while the old connection has not timed out yet.
const MAX_CONNECTIONS_PER_PEER: usize = 4;

/// Streams joined at one time, over all connections; each is a task and a few hundred bytes. Those
/// that have not joined do not count, or strangers could keep everybody out: they are bounded by
/// QUIC and by [`JOIN_DEADLINE`].
const MAX_JOINED_STREAMS: usize = 1024;

/// How long a TLS handshake may take.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);

/// How long a new stream may stay without a complete first message.
const JOIN_DEADLINE: Duration = Duration::from_secs(5);

/// How long a requester may leave an answer untaken before its place goes to another.
const STALL_DEADLINE: Duration = Duration::from_secs(20);

/// What all connections share.
pub(crate) struct Server {
    source: Arc<dyn ContentSource>,
    seat: Option<Arc<Seat>>,
    readers: Arc<ReaderPool>,
    feeds: Feeds,
    uploads: Semaphore,
    joined: Semaphore,
    uploads_by_peer: Arc<PeerLimit>,
    max_uploads: usize,
    connections: Arc<PeerLimit>,
    unjoined_timeout: Duration,
    steward_idle_timeout: Duration,
    busy_retry_after: Duration,
    counter: UploadCounter,
    stopping: watch::Sender<bool>,
}

/// Why a stream ended early.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    /// The requester broke the protocol.
    #[error("{0}")]
    Violation(String),
    /// The requester went away, cancelled or stalled; nobody's fault.
    #[error("{0}")]
    Gone(String),
}

impl Server {
    pub(crate) fn start(
        options: &ExchangeOptions,
        source: Arc<dyn ContentSource>,
        seat: Option<StewardSeat>,
    ) -> io::Result<Self> {
        Ok(Self {
            source,
            seat: seat.map(|seat| Seat::new(seat, options)),
            readers: Arc::new(ReaderPool::start(options.reader_threads)?),
            feeds: Feeds::default(),
            uploads: Semaphore::new(options.max_uploads),
            joined: Semaphore::new(MAX_JOINED_STREAMS),
            // However much one peer asks for, another is answered too.
            uploads_by_peer: PeerLimit::new(options.max_uploads / 2),
            max_uploads: options.max_uploads,
            connections: PeerLimit::new(MAX_CONNECTIONS_PER_PEER),
            unjoined_timeout: options.unjoined_timeout,
            steward_idle_timeout: options.steward_idle_timeout,
            busy_retry_after: options.busy_retry_after,
            counter: UploadCounter::default(),
            stopping: watch::Sender::new(false),
        })
    }

    /// Ends all uploads: their streams are reset. Connections stay for the goodbye.
    pub(crate) fn stop_uploads(&self) {
        self.stopping.send_replace(true);
    }

    /// A place to answer one request of `peer`; `None` when it, or everybody together, has enough.
    fn upload(&self, peer: PeerId) -> Option<(SemaphorePermit<'_>, PeerPermit)> {
        let upload = self.uploads.try_acquire().ok()?;
        Some((upload, self.uploads_by_peer.admit(peer)?))
    }

    pub(crate) fn stats(&self) -> UploadStats {
        self.counter.stats(
            self.max_uploads
                .saturating_sub(self.uploads.available_permits()),
        )
    }
}

/// One connection, from its handshake to its end.
pub(crate) async fn serve_connection(server: Arc<Server>, connecting: quinn::Connecting) {
    let address = connecting.remote_address();
    let connection = match tokio::time::timeout(HANDSHAKE_DEADLINE, connecting).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return tracing::debug!(%address, %error, "no handshake with a peer"),
        Err(_) => return tracing::debug!(%address, "a peer's handshake took too long"),
    };
    let peer = match tls::peer_of(&connection) {
        Ok(peer) => peer,
        Err(error) => {
            return close(
                &connection,
                CloseCode::ProtocolViolation,
                &error.to_string(),
            );
        }
    };
    let Some(_permit) = server.connections.admit(peer) else {
        return close(
            &connection,
            CloseCode::TooManyConnections,
            "one connection is enough",
        );
    };
    serve_streams(&server, &connection, peer).await;
}

async fn serve_streams(server: &Arc<Server>, connection: &Connection, peer: PeerId) {
    let mut stopping = server.stopping.subscribe();
    let mut streams = JoinSet::new();
    let joined = Arc::new(watch::Sender::new(0));
    let mut unjoined = std::pin::pin!(unjoined_for(server.unjoined_timeout, joined.subscribe()));
    loop {
        tokio::select! {
            _ = stopping.wait_for(|stopping| *stopping) => break,
            () = &mut unjoined => return close(connection, CloseCode::Done, "no stream has joined"),
            accepted = connection.accept_bi() => {
                // QUIC bounds how many there are: the transport's stream limit.
                let Ok((send, receive)) = accepted else { return };
                let reader = MessageReader::new(receive);
                let (server, connection) = (Arc::clone(server), connection.clone());
                let (joined, answered) = (Arc::clone(&joined), false);
                let stream = Stream { server, connection, peer, joined, send, reader, answered };
                streams.spawn(stream.serve());
            }
            Some(ended) = streams.join_next() => {
                if let Some(violation) = violation(peer, ended) {
                    return close(connection, CloseCode::ProtocolViolation, &violation);
                }
            }
        }
    }
    drop(streams);
    connection.closed().await;
}

fn violation(peer: PeerId, ended: Result<Result<(), ServeError>, TaskError>) -> Option<String> {
    match ended {
        Ok(Ok(())) => None,
        Ok(Err(ServeError::Gone(reason))) => {
            tracing::debug!(%peer, %reason, "a peer's stream ended early");
            None
        }
        Ok(Err(ServeError::Violation(reason))) => {
            tracing::warn!(%peer, %reason, "peer broke the protocol and is disconnected");
            Some(reason)
        }
        Err(error) => {
            tracing::error!(%peer, %error, "a task that served a peer broke");
            None
        }
    }
}

fn close(connection: &Connection, code: CloseCode, reason: &str) {
    connection.close(VarInt::from_u32(code.code()), reason.as_bytes());
}

/// One stream of one requester. Unless all was answered, dropping it resets it: an end of stream in
/// the middle would be a lie, for which the requester would cut this agent off.
struct Stream {
    server: Arc<Server>,
    connection: Connection,
    peer: PeerId,
    /// How many streams of the connection have joined.
    joined: Arc<watch::Sender<usize>>,
    send: SendStream,
    reader: MessageReader,
    answered: bool,
}

impl Drop for Stream {
    fn drop(&mut self) {
        if !self.answered {
            // It fails only when the stream is closed already.
            let _closed = self.send.reset(VarInt::from_u32(CloseCode::Done.code()));
        }
    }
}

impl Stream {
    async fn serve(mut self) -> Result<(), ServeError> {
        self.answer().await?;
        self.answered = true;
        self.reader.stop();
        // It fails only when the requester has gone, which is as good.
        let _gone = self.send.finish();
        Ok(())
    }

    /// What comes after the first message is on the heap: a stream that never has one is small.
    async fn answer(&mut self) -> Result<(), ServeError> {
        let first = tokio::time::timeout(JOIN_DEADLINE, self.next());
        let first = first
            .await
            .map_err(|_| ServeError::Gone("no first message came".to_owned()))??;
        match first {
            None => Ok(()),
            Some(RequesterMessage::Join { swarm, proof }) => {
                Box::pin(self.join_and_answer(swarm, proof)).await
            }
            Some(RequesterMessage::Enlist(enlist)) => Box::pin(self.serve_member(enlist)).await,
            Some(RequesterMessage::Announce { swarms }) => {
                Box::pin(self.serve_announcer(swarms)).await
            }
            Some(other) => Err(ServeError::Violation(format!(
                "{} before a join",
                other.name()
            ))),
        }
    }

    async fn join_and_answer(
        &mut self,
        swarm: SwarmId,
        proof: JoinProof,
    ) -> Result<(), ServeError> {
        let Some(proof) = self.check(swarm, proof).await? else {
            return self.write(&ResponderMessage::Unknown).await;
        };
        let server = Arc::clone(&self.server);
        let Ok(_place) = server.joined.try_acquire() else {
            return self.write_busy().await;
        };
        let _joined = Joined::count(&self.joined);
        let Some((have, content)) = self.look_up(swarm).await else {
            return self.write(&ResponderMessage::Unknown).await;
        };
        let standing = content.standing();
        let joined = ResponderMessage::Joined {
            proof,
            standing,
            have,
        };
        self.write(&joined).await?;
        self.answer_requests(content).await
    }

    /// The responder's proof, if there is such a content and the requester knows its key. Until that
    /// is certain, whoever asks gets one look-up of a key, one proof computed and one message,
    /// whether there is a content or not.
    async fn check(
        &self,
        swarm: SwarmId,
        proof: JoinProof,
    ) -> Result<Option<JoinProof>, ServeError> {
        let secret = SessionSecret::of(&self.connection, &swarm)?;
        let source = Arc::clone(&self.server.source);
        let looked_up = self.server.readers.run(move || source.key(&swarm));
        let found = looked_up.await.ok().flatten();
        let key = found.unwrap_or(ContentKey::from_bytes([0; 32]));
        let right = secret.check(&key, Side::Requester, &proof);
        let known = found.is_some() && right;
        Ok(known.then(|| secret.prove(&key, Side::Responder)))
    }

    /// What may cost as much as it must: the requester knows the key.
    async fn look_up(&self, swarm: SwarmId) -> Option<(Have, Arc<dyn ServedContent>)> {
        let source = Arc::clone(&self.server.source);
        let looked_up = self.server.readers.run(move || {
            let content = source.content(&swarm)?;
            Some((Have::of(&content.have()), content))
        });
        looked_up.await.ok().flatten()
    }

    async fn answer_requests(&mut self, content: Arc<dyn ServedContent>) -> Result<(), ServeError> {
        while let Some(message) = self.next().await? {
            match message {
                RequesterMessage::Request(range) => self.answer_range(&content, range).await?,
                RequesterMessage::HashesRequest(range) => {
                    self.answer_hashes(&content, range).await?;
                }
                RequesterMessage::ManifestRequest => self.answer_manifest(&content).await?,
                RequesterMessage::HaveRequest => self.answer_have(&content).await?,
                RequesterMessage::HaveWatch => return self.push_have(&content).await,
                RequesterMessage::Join { .. }
                | RequesterMessage::Enlist(_)
                | RequesterMessage::Report(_)
                | RequesterMessage::Announce { .. }
                | RequesterMessage::Withdraw { .. } => {
                    let what = format!("{} on a joined stream", message.name());
                    return Err(ServeError::Violation(what));
                }
            }
        }
        Ok(())
    }

    async fn answer_have(&mut self, content: &Arc<dyn ServedContent>) -> Result<(), ServeError> {
        let content = Arc::clone(content);
        let have = self.server.readers.run(move || Have::of(&content.have()));
        match have.await {
            Ok(have) => self.write(&ResponderMessage::Have(have)).await,
            Err(_) => self.write_busy().await,
        }
    }

    async fn answer_hashes(
        &mut self,
        content: &Arc<dyn ServedContent>,
        range: SegmentRange,
    ) -> Result<(), ServeError> {
        let content = Arc::clone(content);
        match self.server.readers.run(move || content.claims(range)).await {
            Ok(claims) => {
                let first = range.first();
                self.write(&ResponderMessage::Hashes { first, claims })
                    .await
            }
            Err(_) => self.write_busy().await,
        }
    }

    async fn answer_manifest(
        &mut self,
        content: &Arc<dyn ServedContent>,
    ) -> Result<(), ServeError> {
        let server = Arc::clone(&self.server);
        let Some(_upload) = server.upload(self.peer) else {
            return self.write_busy().await;
        };
        let content = Arc::clone(content);
        let manifest = server
            .readers
            .run(move || content.manifest())
            .await
            .ok()
            .flatten();
        let with_length = manifest.and_then(|m| Some((u32::try_from(m.len()).ok()?, m)));
        match with_length {
            None => self.write(&ResponderMessage::NoManifest).await,
            Some((length, body)) => {
                self.write_with_body(&ResponderMessage::Manifest { length }, body)
                    .await
            }
        }
    }

    async fn answer_range(
        &mut self,
        content: &Arc<dyn ServedContent>,
        range: SegmentRange,
    ) -> Result<(), ServeError> {
        let server = Arc::clone(&self.server);
        let Some(_upload) = server.upload(self.peer) else {
            let retry_after = server.busy_retry_after;
            return self
                .write(&ResponderMessage::RangeBusy { range, retry_after })
                .await;
        };
        let mut ahead = ReadAhead::new(&server.readers, content, range);
        while let Some(batch) = ahead.next().await {
            self.write_batch(batch).await?;
        }
        Ok(())
    }

    async fn write_batch(&mut self, batch: Batch) -> Result<(), ServeError> {
        let mut chunks = Vec::with_capacity(2 * batch.len());
        let mut served_bytes = 0;
        for (index, body) in batch {
            let with_length = body.and_then(|b| Some((u32::try_from(b.len()).ok()?, b)));
            let Some((length, body)) = with_length else {
                chunks.push(ResponderMessage::Absent { index }.to_bytes().into());
                continue;
            };
            served_bytes += u64::from(length);
            chunks.push(
                ResponderMessage::Segment { index, length }
                    .to_bytes()
                    .into(),
            );
            chunks.push(body);
        }
        self.write_chunks(&mut chunks).await?;
        self.server.counter.add(self.peer, served_bytes);
        Ok(())
    }

    /// No message but an announcer's is longer than a member's first one.
    async fn next(&mut self) -> Result<Option<RequesterMessage>, ServeError> {
        Ok(self.reader.next_within(MAX_ENLIST_BYTES).await?)
    }

    async fn write_busy(&mut self) -> Result<(), ServeError> {
        let retry_after = self.server.busy_retry_after;
        self.write(&ResponderMessage::Busy { retry_after }).await
    }

    async fn write(&mut self, message: &ResponderMessage) -> Result<(), ServeError> {
        self.write_chunks(&mut [message.to_bytes().into()]).await
    }

    async fn write_with_body(
        &mut self,
        header: &ResponderMessage,
        body: Bytes,
    ) -> Result<(), ServeError> {
        self.write_chunks(&mut [header.to_bytes().into(), body])
            .await
    }

    /// Hands bytes to QUIC, uncopied, as its window allows.
    async fn write_chunks(&mut self, chunks: &mut [Bytes]) -> Result<(), ServeError> {
        match tokio::time::timeout(STALL_DEADLINE, self.send.write_all_chunks(chunks)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(ServeError::Gone(error.to_string())),
            Err(_) => Err(ServeError::Gone(format!(
                "took nothing for {STALL_DEADLINE:?}"
            ))),
        }
    }
}

/// Segments read together; `None` is absent.
type Batch = Vec<(SegmentIndex, Option<Bytes>)>;

/// A segment's bytes: verified ones, unless the requester was told that they are provisional.
fn read(content: &dyn ServedContent, index: SegmentIndex) -> Option<Bytes> {
    match content.standing() {
        Standing::Proved => content.read(index).map(VerifiedSegment::into_bytes),
        Standing::Provisional { .. } => {
            let segment = content.read_provisional(index);
            segment.map(ProvisionalSegment::into_bytes)
        }
    }
}

/// Reads a range's segments ahead of their being sent, in order.
struct ReadAhead<'a> {
    readers: &'a ReaderPool,
    content: &'a Arc<dyn ServedContent>,
    /// Not asked of the readers yet.
    rest: std::ops::Range<u32>,
    asked: VecDeque<(std::ops::Range<u32>, oneshot::Receiver<Batch>)>,
}

impl<'a> ReadAhead<'a> {
    fn new(
        readers: &'a ReaderPool,
        content: &'a Arc<dyn ServedContent>,
        range: SegmentRange,
    ) -> Self {
        let rest = range.first().0..range.end();
        Self {
            readers,
            content,
            rest,
            asked: VecDeque::new(),
        }
    }

    /// The next segments; all absent when reading them panicked.
    async fn next(&mut self) -> Option<Batch> {
        while self.asked.len() < BATCHES_AHEAD && !self.rest.is_empty() {
            self.ask();
        }
        let (indices, reading) = self.asked.pop_front()?;
        let batch = reading.await;
        Some(batch.unwrap_or_else(|_| indices.map(|index| (SegmentIndex(index), None)).collect()))
    }

    fn ask(&mut self) {
        let indices = batch_of(&self.rest, |index| self.content.length(index));
        self.rest.start = indices.end;
        let (content, wanted) = (Arc::clone(self.content), indices.clone());
        let reading = self.readers.run(move || {
            wanted
                .map(SegmentIndex)
                .map(|index| (index, read(&*content, index)))
                .collect()
        });
        self.asked.push_back((indices, reading));
    }
}

/// The first segments of `rest` that together have at most [`BATCH_BYTES`]; one that is longer alone.
fn batch_of(
    rest: &std::ops::Range<u32>,
    length: impl Fn(SegmentIndex) -> Option<u32>,
) -> std::ops::Range<u32> {
    let mut bytes = 0;
    let fitting = rest.clone().take(BATCH_SEGMENTS).take_while(|index| {
        // What does not exist is read as absent, and takes no room.
        bytes += u64::from(length(SegmentIndex(*index)).unwrap_or(0));
        bytes <= BATCH_BYTES
    });
    let end = fitting.last().unwrap_or(rest.start) + 1;
    rest.start..end
}

impl From<ReceiveError> for ServeError {
    fn from(error: ReceiveError) -> Self {
        match error {
            ReceiveError::Wire(error) => error.into(),
            error @ ReceiveError::TooLong { .. } => Self::Violation(error.to_string()),
            ReceiveError::Truncated => {
                Self::Violation("the stream ended within a message".to_owned())
            }
            ReceiveError::Stream(error) => Self::Gone(error.to_string()),
        }
    }
}

impl From<WireError> for ServeError {
    fn from(error: WireError) -> Self {
        Self::Violation(error.to_string())
    }
}

impl From<PeerFailure> for ServeError {
    fn from(failure: PeerFailure) -> Self {
        Self::Gone(failure.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_ends_where_it_would_be_too_large() {
        const K: u32 = 1024;
        let lengths = [K, 16 << 20, 1, 255 * K, 2 * K, 256 * K, 1];
        let length = |index: SegmentIndex| lengths.get(index.0 as usize).copied();
        let (mut rest, mut batches) = (0..7, Vec::new());
        while !rest.is_empty() {
            let batch = batch_of(&rest, length);
            rest.start = batch.end;
            batches.push(batch);
        }
        assert_eq!(batches, [0..1, 1..2, 2..4, 4..5, 5..6, 6..7]);
        assert_eq!(batch_of(&(100..200), length), 100..132, "past the end");
        assert_eq!(batch_of(&(u32::MAX - 2..u32::MAX - 1), length).len(), 1);
    }
}
