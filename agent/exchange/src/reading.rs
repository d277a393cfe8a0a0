//! Messages and raw bytes from a QUIC stream.

use std::collections::VecDeque;

use branchline_core::wire::{Decoded, MAX_MESSAGE_BYTES, WireError, WireMessage};
use bytes::{Buf, Bytes};
use quinn::{ReadError, RecvStream};

/// Packets taken from quinn at one time: one lock of the connection for all.
const CHUNKS_AT_ONCE: usize = 32;

/// Where a body's buffer begins when its length is only the peer's word.
const UNTRUSTED_CAPACITY_BYTES: usize = 64 << 10;

/// Why no message came.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReceiveError {
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("the stream ended too early")]
    Truncated,
    #[error("a message of {needs} bytes or more, where {limit} are the most")]
    TooLong { needs: usize, limit: usize },
    #[error(transparent)]
    Stream(#[from] ReadError),
}

/// Reads one stream. What quinn has given and nobody has taken is at most [`CHUNKS_AT_ONCE`] packets.
pub(crate) struct MessageReader {
    stream: RecvStream,
    chunks: VecDeque<Bytes>,
    /// The beginning of a message.
    begun: Vec<u8>,
}

impl MessageReader {
    pub(crate) fn new(stream: RecvStream) -> Self {
        Self {
            stream,
            chunks: VecDeque::new(),
            begun: Vec::new(),
        }
    }

    /// The next message; `None` when the stream ended before one. Cancel-safe.
    pub(crate) async fn next<M: WireMessage>(&mut self) -> Result<Option<M>, ReceiveError> {
        self.next_within(MAX_MESSAGE_BYTES).await
    }

    /// The same, where no message of more than `limit` bytes belongs. Cancel-safe.
    pub(crate) async fn next_within<M: WireMessage>(
        &mut self,
        limit: usize,
    ) -> Result<Option<M>, ReceiveError> {
        loop {
            match M::decode(&self.begun)? {
                Decoded::Message { message, length } => {
                    debug_assert_eq!(length, self.begun.len());
                    self.begun.clear();
                    return Ok(Some(message));
                }
                Decoded::Incomplete { needs } if needs > limit => {
                    return Err(ReceiveError::TooLong { needs, limit });
                }
                Decoded::Incomplete { needs } => {
                    if !self.begin(needs).await? {
                        return match self.begun.is_empty() {
                            true => Ok(None),
                            false => Err(ReceiveError::Truncated),
                        };
                    }
                }
            }
        }
    }

    /// The next `length` bytes in one buffer of just that size: `length` is one this agent knows.
    pub(crate) async fn body(&mut self, length: usize) -> Result<Bytes, ReceiveError> {
        self.gather(length, Vec::with_capacity(length)).await
    }

    /// The next `length` bytes, in a buffer that grows as they arrive: `length` is the peer's word.
    pub(crate) async fn untrusted_body(&mut self, length: usize) -> Result<Bytes, ReceiveError> {
        self.gather(
            length,
            Vec::with_capacity(length.min(UNTRUSTED_CAPACITY_BYTES)),
        )
        .await
    }

    /// Tells the other side that nothing more will be read.
    pub(crate) fn stop(&mut self) {
        // It fails only when the stream has ended, which is as good.
        let _ended = self.stream.stop(quinn::VarInt::from_u32(0));
    }

    async fn gather(&mut self, length: usize, mut body: Vec<u8>) -> Result<Bytes, ReceiveError> {
        while body.len() < length {
            if !self.fill().await? {
                return Err(ReceiveError::Truncated);
            }
            let missing = length - body.len();
            self.take(missing, &mut body);
        }
        Ok(Bytes::from(body))
    }

    /// Brings `begun` to `needs` bytes, never past them; false at the stream's end.
    async fn begin(&mut self, needs: usize) -> Result<bool, ReadError> {
        while self.begun.len() < needs {
            if !self.fill().await? {
                return Ok(false);
            }
            let mut begun = std::mem::take(&mut self.begun);
            self.take(needs - begun.len(), &mut begun);
            self.begun = begun;
        }
        Ok(true)
    }

    /// Moves up to `most` bytes of what has arrived to the end of `into`.
    fn take(&mut self, most: usize, into: &mut Vec<u8>) {
        let mut missing = most;
        while let Some(front) = self.chunks.front_mut().filter(|_| missing > 0) {
            let count = front.len().min(missing);
            into.extend_from_slice(&front[..count]);
            front.advance(count);
            missing -= count;
            if front.is_empty() {
                self.chunks.pop_front();
            }
        }
    }

    /// Sees to it that something has arrived; false at the stream's end. Cancel-safe.
    async fn fill(&mut self) -> Result<bool, ReadError> {
        if !self.chunks.is_empty() {
            return Ok(true);
        }
        let mut chunks = [const { Bytes::new() }; CHUNKS_AT_ONCE];
        let count = self.stream.read_chunks(&mut chunks).await?.unwrap_or(0);
        self.chunks.extend(
            chunks
                .into_iter()
                .take(count)
                .filter(|chunk| !chunk.is_empty()),
        );
        Ok(count > 0)
    }
}
