//! HTTP/2 frames by hand, for what no client library sends. Header blocks are literals without Huffman coding and
//! without the dynamic table (RFC 7541, section 6.2.2).

use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::harness::within;

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;

pub(crate) const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// Settings by their numbers (RFC 9113, section 6.5.2).
pub(crate) const MAX_CONCURRENT_STREAMS: u16 = 3;
pub(crate) const INITIAL_WINDOW_SIZE: u16 = 4;
pub(crate) const MAX_HEADER_LIST_SIZE: u16 = 6;

/// Error codes (RFC 9113, section 7).
pub(crate) const NO_ERROR: u32 = 0;
pub(crate) const FLOW_CONTROL_ERROR: u32 = 3;
pub(crate) const REFUSED_STREAM: u32 = 7;
pub(crate) const ENHANCE_YOUR_CALM: u32 = 11;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

fn number(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |number, byte| number << 8 | u32::from(*byte))
}

impl Frame {
    pub(crate) fn encode(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        frame
    }

    /// The value of a setting.
    pub(crate) fn setting(&self, setting: u16) -> Option<u32> {
        assert_eq!(self.kind, SETTINGS);
        let found = self.payload.chunks_exact(6).find(|entry| entry[..2] == setting.to_be_bytes());
        found.map(|entry| number(&entry[2..]))
    }

    /// Of a RST_STREAM.
    pub(crate) fn error_code(&self) -> u32 {
        assert_eq!(self.kind, RST_STREAM);
        number(&self.payload)
    }

    /// Of a GOAWAY: the last stream it still serves, the error code, the reason in words.
    pub(crate) fn go_away(&self) -> (u32, u32, String) {
        assert_eq!(self.kind, GOAWAY);
        let words = String::from_utf8(self.payload[8..].to_vec()).unwrap();
        (number(&self.payload[..4]), number(&self.payload[4..8]), words)
    }

    pub(crate) fn ends_stream(&self) -> bool {
        matches!(self.kind, DATA | HEADERS) && self.flags & END_STREAM != 0
    }
}

/// Frames to be sent.
pub(crate) mod frame {
    use super::*;

    pub(crate) fn settings(entries: &[(u16, u32)]) -> Vec<u8> {
        let entry = |(id, value): &(u16, u32)| [id.to_be_bytes().to_vec(), value.to_be_bytes().to_vec()].concat();
        Frame::encode(SETTINGS, 0, 0, &entries.iter().flat_map(entry).collect::<Vec<_>>())
    }

    /// The head of a call whose body is still to come.
    pub(crate) fn call(stream: u32, path: &str) -> Vec<u8> {
        Frame::encode(HEADERS, END_HEADERS, stream, &header_block(path, &[]))
    }

    pub(crate) fn call_with(stream: u32, path: &str, extra: &[(&str, &str)]) -> Vec<u8> {
        Frame::encode(HEADERS, END_HEADERS, stream, &header_block(path, extra))
    }

    /// As [`call`], of which more headers would follow.
    pub(crate) fn unfinished_call(stream: u32, path: &str) -> Vec<u8> {
        Frame::encode(HEADERS, 0, stream, &header_block(path, &[]))
    }

    /// A message and the end of the request.
    pub(crate) fn message(stream: u32, message: &impl prost::Message) -> Vec<u8> {
        let encoded = message.encode_to_vec();
        let mut data = vec![0];
        data.extend((encoded.len() as u32).to_be_bytes());
        data.extend(encoded);
        Frame::encode(DATA, END_STREAM, stream, &data)
    }

    pub(crate) fn reset(stream: u32) -> Vec<u8> {
        const CANCEL: u32 = 8;
        Frame::encode(RST_STREAM, 0, stream, &CANCEL.to_be_bytes())
    }

    pub(crate) fn window_update(stream: u32, increment: u32) -> Vec<u8> {
        Frame::encode(WINDOW_UPDATE, 0, stream, &increment.to_be_bytes())
    }

    pub(crate) fn ping(payload: [u8; 8]) -> Vec<u8> {
        Frame::encode(PING, 0, 0, &payload)
    }
}

fn string(text: &str) -> Vec<u8> {
    let mut encoded = Vec::new();
    match text.len() {
        short @ 0..127 => encoded.push(short as u8),
        long => {
            encoded.push(127);
            let mut rest = long - 127;
            while rest >= 128 {
                encoded.push((rest % 128) as u8 | 128);
                rest /= 128;
            }
            encoded.push(rest as u8);
        }
    }
    encoded.extend(text.as_bytes());
    encoded
}

fn header_block(path: &str, extra: &[(&str, &str)]) -> Vec<u8> {
    let usual = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    let literal = |(name, value): &(&str, &str)| [vec![0], string(name), string(value)].concat();
    usual.iter().chain(extra).flat_map(literal).collect()
}

/// A connection.
pub(crate) struct Raw {
    stream: TcpStream,
}

impl Raw {
    /// A connection on which nothing has been said.
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).await.unwrap())
    }

    fn over(stream: TcpStream) -> Self {
        // Or every second frame of a test waits for the server's acknowledgement of the first.
        stream.set_nodelay(true).unwrap();
        Self { stream }
    }

    /// From an address of this machine.
    pub(crate) async fn connect_from(source: Ipv4Addr, address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((source, 0).into()).unwrap();
        Self::over(socket.connect(address).await.unwrap())
    }

    /// A connection after its handshake, and the server's settings.
    pub(crate) async fn open(address: SocketAddr) -> (Self, Frame) {
        Self::connect(address).await.greet(&[]).await
    }

    /// With these settings of the client.
    pub(crate) async fn open_with(address: SocketAddr, settings: &[(u16, u32)]) -> (Self, Frame) {
        Self::connect(address).await.greet(settings).await
    }

    /// From an address of this machine.
    pub(crate) async fn open_from(source: Ipv4Addr, address: SocketAddr) -> (Self, Frame) {
        Self::connect_from(source, address).await.greet(&[]).await
    }

    async fn greet(mut self, settings: &[(u16, u32)]) -> (Self, Frame) {
        self.send(&[PREFACE, &frame::settings(settings)].concat()).await;
        let theirs = self.until(SETTINGS).await;
        self.send(&Frame::encode(SETTINGS, ACK, 0, &[])).await;
        (self, theirs)
    }

    /// A server that has closed the connection meanwhile is no failure: what it said before can still be read.
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        drop(self.stream.write_all(bytes).await);
    }

    /// The next frame; `None` once the server has closed the connection.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        within(self.read()).await
    }

    async fn read(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head).await.ok()?;
        let mut payload = vec![0; number(&head[..3]) as usize];
        self.stream.read_exact(&mut payload).await.ok()?;
        Some(Frame { kind: head[3], flags: head[4], stream: number(&head[5..]) & 0x7fff_ffff, payload })
    }

    /// The next frame of a kind, acknowledgements left out.
    pub(crate) async fn until(&mut self, kind: u8) -> Frame {
        loop {
            let frame = self.next().await.unwrap_or_else(|| panic!("closed before a frame of kind {kind}"));
            if frame.kind == kind && !(matches!(kind, SETTINGS | PING) && frame.flags & ACK != 0) {
                return frame;
            }
        }
    }

    /// Answer a ping.
    pub(crate) async fn pong(&mut self, ping: &Frame) {
        assert_eq!(ping.kind, PING);
        self.send(&Frame::encode(PING, ACK, 0, &ping.payload)).await;
    }

    /// Everything said until the server closes the connection.
    pub(crate) async fn rest(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        while let Some(frame) = self.next().await {
            frames.push(frame);
        }
        frames
    }

    /// Wait until the server has closed the connection, and see that it said nothing.
    pub(crate) async fn closed(&mut self) {
        assert_eq!(self.rest().await, []);
    }

    /// Whether the server still answers; frames that come before the answer are passed over.
    pub(crate) async fn answers(&mut self) -> bool {
        let payload = *b"are you?";
        self.send(&frame::ping(payload)).await;
        while let Some(frame) = self.next().await {
            if frame.kind == PING && frame.flags & ACK != 0 && frame.payload == payload {
                return true;
            }
        }
        false
    }
}
