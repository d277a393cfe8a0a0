//! The responder's side: accepts connections and answers requests.
//!
//! Reading and verifying happens on the reader threads, a little ahead of what QUIC takes. What a
//! requester does wrong closes its connection; what it does not take in time ends its stream.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use branchline_core::wire::{
    CloseCode, Have, JoinProof, RequesterMessage, ResponderMessage, WireError, WireMessage,
};
use branchline_core::{PeerId, SegmentRange};
use branchline_hashing::{ContentKey, SegmentIndex, SwarmId, VerifiedSegment};
use bytes::Bytes;
use quinn::{Connection, SendStream, VarInt};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::{JoinError as TaskError, JoinSet};

use crate::connection_limit::ConnectionLimit;
use crate::error::PeerFailure;
use crate::options::ExchangeOptions;
use crate::proof::{SessionSecret, Side};
use crate::reader_pool::ReaderPool;
use crate::reading::{MessageReader, ReceiveError};
use crate::source::{ContentSource, ServedContent};
use crate::tls;
use crate::upload::{UploadCounter, UploadStats};

/// A reader thread reads about this much at one time: with segments of 32 KiB one at a time, waking
/// threads cost more than verifying.
const BATCH_BYTES: usize = 256 << 10;

/// The most segments in a batch; bounds it where short segments are followed by long ones.
const BATCH_SEGMENTS: usize = 32;

/// Batches read before QUIC has taken the one in front.
const BATCHES_AHEAD: usize = 2;

/// Streams joined at one time, over all connections; each is a task and a few hundred bytes.
const MAX_JOINED_STREAMS: usize = 1024;

/// How long a TLS handshake may take.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);

/// How long a new stream may stay without a complete join.
const JOIN_DEADLINE: Duration = Duration::from_secs(5);

/// How long a requester may leave an answer untaken before its place goes to another.
const STALL_DEADLINE: Duration = Duration::from_secs(20);

/// What all connections share.
pub(crate) struct Server {
    source: Arc<dyn ContentSource>,
    readers: ReaderPool,
    uploads: Semaphore,
    joined: Semaphore,
    max_uploads: usize,
    connections: Arc<ConnectionLimit>,
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
    ) -> io::Result<Self> {
        Ok(Self {
            source,
            readers: ReaderPool::start(options.reader_threads)?,
            uploads: Semaphore::new(options.max_uploads),
            joined: Semaphore::new(MAX_JOINED_STREAMS),
            max_uploads: options.max_uploads,
            connections: Arc::default(),
            busy_retry_after: options.busy_retry_after,
            counter: UploadCounter::default(),
            stopping: watch::Sender::new(false),
        })
    }

    /// Ends all uploads: their streams are reset. Connections stay for the goodbye.
    pub(crate) fn stop_uploads(&self) {
        self.stopping.send_replace(true);
    }

    pub(crate) fn stats(&self) -> UploadStats {
        self.counter.stats(
            self.max_uploads
                .saturating_sub(self.uploads.available_permits()),
        )
    }
}

/// One connection, from its handshake to its end.
pub(crate) async fn serve_connection(server: Arc<Server>, incoming: quinn::Incoming) {
    let address = incoming.remote_address();
    let connection = match tokio::time::timeout(HANDSHAKE_DEADLINE, incoming).await {
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
    loop {
        tokio::select! {
            _ = stopping.wait_for(|stopping| *stopping) => break,
            accepted = connection.accept_bi() => {
                // QUIC bounds how many there are: the transport's stream limit.
                let Ok((send, receive)) = accepted else { return };
                let reader = MessageReader::new(receive);
                let (server, connection) = (Arc::clone(server), connection.clone());
                let answered = false;
                let stream = Stream { server, connection, peer, send, reader, answered };
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
        self.join_and_answer().await?;
        self.answered = true;
        self.reader.stop();
        // It fails only when the requester has gone, which is as good.
        let _gone = self.send.finish();
        Ok(())
    }

    async fn join_and_answer(&mut self) -> Result<(), ServeError> {
        let server = Arc::clone(&self.server);
        let Ok(_joined) = server.joined.try_acquire() else {
            return self.write_busy().await;
        };
        let join = tokio::time::timeout(JOIN_DEADLINE, self.read_join());
        let Some((swarm, proof)) = join
            .await
            .map_err(|_| ServeError::Gone("no join came".to_owned()))??
        else {
            return Ok(());
        };
        match self.admit(swarm, proof).await? {
            Some(content) => self.answer_requests(content).await,
            None => self.write(&ResponderMessage::Unknown).await,
        }
    }

    async fn read_join(&mut self) -> Result<Option<(SwarmId, JoinProof)>, ServeError> {
        match self.next().await? {
            None => Ok(None),
            Some(RequesterMessage::Join { swarm, proof }) => Ok(Some((swarm, proof))),
            Some(other) => Err(ServeError::Violation(format!("{other:?} before a join"))),
        }
    }

    /// The content, if there is one and the requester knows its key. Both answers take one look-up,
    /// two proofs and one message.
    async fn admit(
        &mut self,
        swarm: SwarmId,
        proof: JoinProof,
    ) -> Result<Option<Arc<dyn ServedContent>>, ServeError> {
        let secret = SessionSecret::of(&self.connection, &swarm)?;
        let source = Arc::clone(&self.server.source);
        let looked_up = self.server.readers.run(move || {
            source
                .content(&swarm)
                .map(|content| (content.key(), Have::of(&content.have()), content))
        });
        let found = looked_up.await.ok().flatten();
        let nobodys_key = ContentKey::from_bytes([0; 32]);
        let key = found.as_ref().map_or(nobodys_key, |(key, ..)| *key);
        let right = secret.check(&key, Side::Requester, &proof);
        let proof = secret.prove(&key, Side::Responder);
        let Some((_, have, content)) = found.filter(|_| right) else {
            return Ok(None);
        };
        self.write(&ResponderMessage::Joined { proof, have })
            .await?;
        Ok(Some(content))
    }

    async fn answer_requests(&mut self, content: Arc<dyn ServedContent>) -> Result<(), ServeError> {
        while let Some(message) = self.next().await? {
            match message {
                RequesterMessage::Request(range) => self.answer_range(&content, range).await?,
                RequesterMessage::ManifestRequest => self.answer_manifest(&content).await?,
                RequesterMessage::HaveRequest => self.answer_have(&content).await?,
                RequesterMessage::Join { .. } => {
                    return Err(ServeError::Violation(
                        "a second join on one stream".to_owned(),
                    ));
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

    async fn answer_manifest(
        &mut self,
        content: &Arc<dyn ServedContent>,
    ) -> Result<(), ServeError> {
        let server = Arc::clone(&self.server);
        let Ok(_upload) = server.uploads.try_acquire() else {
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
        let Ok(_upload) = server.uploads.try_acquire() else {
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
        for (index, segment) in batch {
            let body = segment.map(VerifiedSegment::into_bytes);
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

    async fn next(&mut self) -> Result<Option<RequesterMessage>, ServeError> {
        Ok(self.reader.next().await?)
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
type Batch = Vec<(SegmentIndex, Option<VerifiedSegment>)>;

/// Reads a range's segments ahead of their being sent, in order.
struct ReadAhead<'a> {
    readers: &'a ReaderPool,
    content: &'a Arc<dyn ServedContent>,
    /// Not asked of the readers yet.
    rest: std::ops::Range<u32>,
    asked: VecDeque<(std::ops::Range<u32>, oneshot::Receiver<Batch>)>,
    /// Segments to a batch, by the lengths in the one before.
    batch_segments: usize,
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
            batch_segments: 1,
        }
    }

    /// The next segments; all absent when reading them panicked.
    async fn next(&mut self) -> Option<Batch> {
        while self.asked.len() < BATCHES_AHEAD && !self.rest.is_empty() {
            self.ask();
        }
        let (indices, reading) = self.asked.pop_front()?;
        let batch = reading
            .await
            .unwrap_or_else(|_| indices.map(|index| (SegmentIndex(index), None)).collect());
        let lengths = batch
            .iter()
            .filter_map(|(_, segment)| Some(segment.as_ref()?.bytes().len()));
        if let Some(longest) = lengths.max() {
            self.batch_segments = (BATCH_BYTES / longest.max(1)).clamp(1, BATCH_SEGMENTS);
        }
        Some(batch)
    }

    fn ask(&mut self) {
        let first = self.rest.start;
        self.rest.by_ref().take(self.batch_segments).for_each(drop);
        let indices = first..self.rest.start;
        let (content, wanted) = (Arc::clone(self.content), indices.clone());
        let reading = self.readers.run(move || {
            wanted
                .map(SegmentIndex)
                .map(|index| (index, content.read(index)))
                .collect()
        });
        self.asked.push_back((indices, reading));
    }
}

impl From<ReceiveError> for ServeError {
    fn from(error: ReceiveError) -> Self {
        match error {
            ReceiveError::Wire(error) => error.into(),
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
