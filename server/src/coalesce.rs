//! One write for all that a connection has to send at a time.
//!
//! HTTP/2 cuts an answer into frames of 16 KiB, since most clients take no larger ones, and h2
//! writes and flushes each by itself. Over loopback that costs three times the CPU of the same
//! bytes in one write, and the client twice as much. So frames are gathered while the connection
//! is polled, and written when it has nothing more to do.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that are gathered before they are written in any case.
const GATHER_BYTES: usize = 128 << 10;
/// What is gathered into at first. A connection keeps no larger buffer while it is idle.
const IDLE_BYTES: usize = 4 << 10;

/// The connection's end of a stream whose writes are gathered.
pub(crate) struct Gathered<S>(Arc<Mutex<Inner<S>>>);

/// Writes what a connection gathered.
pub(crate) struct Writer<S>(Arc<Mutex<Inner<S>>>);

struct Inner<S> {
    stream: S,
    gathered: Vec<u8>,
    /// How much of it is written already.
    written: usize,
    /// Whether a [`Writer`] comes behind the connection's writes. Otherwise a flush writes: for who
    /// uses the stream after the connection was upgraded.
    deferred: bool,
}

/// Parts a stream into what a connection uses, and who writes for it.
pub(crate) fn gather<S>(stream: S) -> (Gathered<S>, Writer<S>) {
    let inner = Arc::new(Mutex::new(Inner {
        stream,
        gathered: Vec::new(),
        written: 0,
        deferred: true,
    }));
    (Gathered(Arc::clone(&inner)), Writer(inner))
}

impl<S: AsyncWrite + Unpin> Writer<S> {
    /// Polls a connection to its end and writes what it gathers.
    ///
    /// # Errors
    /// The connection's, or that the peer takes nothing any more.
    pub async fn serve<E: From<io::Error>>(
        self,
        connection: impl Future<Output = Result<(), E>>,
    ) -> Result<(), E> {
        let mut connection = std::pin::pin!(connection);
        let mut ended = false;
        let served = std::future::poll_fn(|cx| {
            // Not under the lock: the connection takes it to read and write.
            let polled = match ended {
                true => Poll::Ready(Ok(())),
                false => connection.as_mut().poll(cx),
            };
            let mut inner = self.0.lock();
            ended = polled.is_ready();
            inner.deferred = !ended;
            let written = inner.poll_write_out(cx);
            if let Poll::Ready(Err(error)) = polled {
                // What it said about the error is written, if the socket took it at once.
                return Poll::Ready(Err(error));
            }
            // When the socket takes no more, this task is woken once it does.
            ready!(written)?;
            match ended {
                true => Poll::Ready(Ok(())),
                false => Poll::Pending,
            }
        });
        served.await
    }
}

impl<S: AsyncWrite + Unpin> Inner<S> {
    /// Adds to what is gathered; not all, when there is no room. Waits when there is none at all.
    fn poll_gather(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.gathered.len() >= GATHER_BYTES {
            ready!(self.poll_write_out(cx))?;
        }
        let taken = bytes.len().min(GATHER_BYTES - self.gathered.len());
        let needed = self.gathered.len() + taken;
        if needed > self.gathered.capacity() {
            // At once to its full size: growing would copy.
            let size = if needed > IDLE_BYTES {
                GATHER_BYTES
            } else {
                IDLE_BYTES
            };
            self.gathered.reserve_exact(size - self.gathered.len());
        }
        self.gathered.extend_from_slice(&bytes[..taken]);
        Poll::Ready(Ok(taken))
    }

    /// Writes what is gathered.
    fn poll_write_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.gathered.len() {
            let rest = &self.gathered[self.written..];
            match ready!(Pin::new(&mut self.stream).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.written += written,
            }
        }
        self.written = 0;
        self.gathered.clear();
        self.gathered.shrink_to(IDLE_BYTES);
        Pin::new(&mut self.stream).poll_flush(cx)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gathered<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.lock().stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathered<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.lock().poll_gather(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut inner = self.0.lock();
        let mut taken = 0;
        for bytes in slices.iter().filter(|bytes| !bytes.is_empty()) {
            match inner.poll_gather(cx, bytes) {
                Poll::Ready(Ok(part)) => {
                    taken += part;
                    if part < bytes.len() {
                        break;
                    }
                }
                // What was taken must be said; the rest comes again.
                _ if taken > 0 => break,
                failed => return failed,
            }
        }
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.0.lock();
        match inner.deferred {
            true => Poll::Ready(Ok(())),
            false => inner.poll_write_out(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.0.lock();
        ready!(inner.poll_write_out(cx))?;
        Pin::new(&mut inner.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    /// A connection that writes pieces and flushes after each, as h2 does.
    async fn pieces(
        mut stream: Gathered<impl AsyncWrite + Unpin>,
        sizes: &[usize],
    ) -> io::Result<()> {
        for (n, size) in sizes.iter().enumerate() {
            let piece = vec![n as u8; *size];
            let (head, tail) = piece.split_at(size / 3);
            let mut slices = &mut [IoSlice::new(head), IoSlice::new(&[]), IoSlice::new(tail)][..];
            while !slices.is_empty() {
                let written = stream.write_vectored(slices).await?;
                IoSlice::advance_slices(&mut slices, written);
                while slices.first().is_some_and(|slice| slice.is_empty()) {
                    slices = &mut slices[1..];
                }
            }
            stream.flush().await?;
        }
        Ok(())
    }

    fn expected(sizes: &[usize]) -> Vec<u8> {
        let pieces = sizes.iter().enumerate();
        pieces.flat_map(|(n, size)| vec![n as u8; *size]).collect()
    }

    #[tokio::test]
    async fn all_arrives_in_order_whatever_the_sizes() {
        let sizes = [1, 0, 4096, 9, 16 << 10, 300_000, 7, 128 << 10, 1, 128 << 10];
        // The peer takes less at a time than is gathered.
        for room in [100, 20_000, 1 << 20] {
            let (ours, mut theirs) = duplex(room);
            let (gathered, writer) = gather(ours);
            let served = tokio::spawn(writer.serve(async move { pieces(gathered, &sizes).await }));
            let mut read = Vec::new();
            theirs.read_to_end(&mut read).await.unwrap();
            assert!(read == expected(&sizes), "{room}");
            served.await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn what_is_flushed_leaves_while_the_connection_waits() {
        let (ours, mut theirs) = duplex(1 << 20);
        let (mut gathered, writer) = gather(ours);
        let connection = async move {
            gathered.write_all(b"question").await?;
            gathered.flush().await?;
            let mut answer = [0; 6];
            gathered.read_exact(&mut answer).await?;
            assert_eq!(&answer, b"answer");
            io::Result::Ok(())
        };
        let served = tokio::spawn(writer.serve(connection));
        let mut question = [0; 8];
        theirs.read_exact(&mut question).await.unwrap();
        theirs.write_all(b"answer").await.unwrap();
        served.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn who_takes_over_the_stream_writes_by_flushing() {
        let (ours, mut theirs) = duplex(1 << 20);
        let (mut gathered, writer) = gather(ours);
        writer.serve(async { io::Result::Ok(()) }).await.unwrap();
        gathered.write_all(b"upgraded").await.unwrap();
        gathered.flush().await.unwrap();
        let mut read = [0; 8];
        theirs.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"upgraded");
    }

    #[tokio::test]
    async fn a_peer_that_is_gone_ends_the_connection() {
        let (ours, theirs) = duplex(16);
        drop(theirs);
        let (mut gathered, writer) = gather(ours);
        let connection = async move {
            gathered.write_all(b"to nobody").await?;
            std::future::pending().await
        };
        let ended: io::Result<()> = writer.serve(connection).await;
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
