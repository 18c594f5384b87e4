#!/usr/bin/env python3
"""Writes the seeds in fuzz/corpus: inputs that mean something, named by what they are.

They are made here, not by roamd's own code, so that a mistake of that code is not in them.
Run it from anywhere; seeds that it does not know (regressions, what was added by hand) stay.
"""

import base64
import pathlib
import struct

CORPUS = pathlib.Path(__file__).parent / "corpus"
DATA = pathlib.Path(__file__).parent.parent / "tests" / "data"


def seed(target, name, data):
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())


# Packets.

V4 = bytes([10, 66, 0, 1]), bytes([10, 66, 0, 2])
V6 = bytes.fromhex("fd66" + "00" * 13 + "01"), bytes.fromhex("fd66" + "00" * 13 + "02")
TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58
ACK, PSH, FIN, SYN, ECE, CWR = 0x10, 0x08, 0x01, 0x02, 0x40, 0x80


def total(data):
    data += b"\0" * (len(data) % 2)
    result = sum(struct.unpack(f">{len(data) // 2}H", data))
    while result >> 16:
        result = (result & 0xFFFF) + (result >> 16)
    return result


def pseudo(addresses, protocol, length):
    return total(b"".join(addresses) + struct.pack(">II", length, protocol))


def tcp(payload=b"", flags=ACK, sequence=1000, options=b"", ports=(22, 40000)):
    offset = (20 + len(options)) // 4 << 4
    header = struct.pack(">HHIIBBHHH", *ports, sequence, 7, offset, flags, 512, 0, 0)
    return TCP, header + options + payload


def udp(payload=b"", ports=(53, 40000)):
    return UDP, struct.pack(">HHHH", *ports, 8 + len(payload), 0) + payload


def transported(addresses, upper, partial):
    """The transport header with its checksum, or with that of the pseudo-header alone."""
    protocol, data = upper
    field = {TCP: 16, UDP: 6}.get(protocol)
    if field is None:
        return protocol, data
    known = pseudo(addresses, protocol, len(data))
    if not partial:
        known = 0xFFFF & ~total(struct.pack(">H", known) + data) or 0xFFFF
    return protocol, data[:field] + struct.pack(">H", known) + data[field + 2 :]


def v4(upper, partial=True, id=1, df=True, tos=0, options=b"", addresses=V4):
    protocol, data = transported(addresses, upper, partial)
    length = 20 + len(options) + len(data)
    fields = 0x45 + len(options) // 4, tos, length, id, 0x4000 if df else 0, 64, protocol
    header = struct.pack(">BBHHHBBH", *fields, 0) + b"".join(addresses) + options
    checksum = 0xFFFF & ~total(header)
    return header[:10] + struct.pack(">H", checksum) + header[12:] + data


def v6(upper, partial=True, traffic=0, extension=b"", first=None, addresses=V6):
    protocol, data = transported(addresses, upper, partial)
    start = struct.pack(">IHBB", 6 << 28 | traffic << 20, len(extension + data), first or protocol, 64)
    return start + b"".join(addresses) + extension + data


PING = ICMP, bytes([8, 0, 0xF7, 0xFF, 0, 0, 0, 0])
TIMESTAMPS = bytes([1, 1, 8, 10]) + bytes(8)
HOP_BY_HOP = bytes([UDP, 0, 1, 4, 0, 0, 0, 0])


def datagrams():
    def add(name, data):
        seed("datagram", name, data)

    add("empty", b"")
    add("padding", bytes(1))
    add("padding-long", bytes(100))
    add("fragment", bytes([1, 0x01, 0, 9]) + b"piece")
    add("fragment-beyond-the-last", bytes([1, 0x21, 0, 9]) + b"piece")
    add("fragment-without-a-piece", bytes([1, 0x01, 0, 9]))
    add("unknown-tag", bytes([3, 1, 2]))
    add("unknown-version", b"\x55" + bytes(19))
    add("v4-ping", v4(PING))
    add("v4-ping-for-nobody", v4(PING, addresses=(V4[0], bytes([10, 66, 0, 9]))))
    add("v4-from-loopback", v4(PING, addresses=(bytes([127, 0, 0, 1]), V4[1])))
    add("v4-from-itself", v4(PING, addresses=(V4[1], V4[1])))
    add("v4-tcp-whole", v4(tcp(b"hello"), partial=False))
    add("v4-tcp-unchecked", b"\2" + v4(tcp(b"hello")))
    add("v4-tcp-with-timestamps", b"\2" + v4(tcp(b"hello", options=TIMESTAMPS)))
    add("v4-udp-unchecked", b"\2" + v4(udp(b"question")))
    add("v4-udp-unchecked-odd-length", b"\2" + v4(udp(b"odd")))
    add("v4-ping-unchecked", b"\2" + v4(PING))
    add("v4-with-options", b"\2" + v4(udp(b"x"), options=bytes([148, 4, 0, 0])))
    add("v4-fragment", b"\2" + v4(udp(b"first"), df=False)[:6] + b"\x20" + v4(udp(b"first"))[7:])
    add("v4-capable-of-ecn", v4(udp(b"x"), tos=2, partial=False))
    add("v4-congested", v4(udp(b"x"), tos=3, partial=False))
    add("v4-cut-short", v4(udp(b"question"))[:-3])
    add("v4-with-bytes-to-spare", v4(udp(b"question")) + bytes(3))
    add("v4-header-alone", v4((59, b"")))
    add("v6-ping", v6((ICMPV6, bytes([128, 0, 0, 0, 0, 0, 0, 0]))))
    add("v6-udp-unchecked", b"\2" + v6(udp(b"question")))
    add("v6-tcp-syn", b"\2" + v6(tcp(flags=SYN, options=bytes([2, 4, 5, 0x78]))))
    add("v6-with-hop-by-hop-options", b"\2" + v6(udp(b"x"), extension=HOP_BY_HOP, first=0))
    add("v6-fragment", b"\2" + v6(udp(b"x"), extension=bytes([UDP, 0, 0, 1, 0, 0, 0, 1]), first=44))
    add("v6-endless-options", b"\2" + v6((60, bytes([60, 255, 0, 0]))))
    add("v6-capable-of-ecn", v6(udp(b"x"), traffic=1, partial=False))
    add("v6-from-link-local", v6(udp(b"x"), addresses=(b"\xfe\x80" + V6[0][2:], V6[1])))
    add("v6-mapped", v6(udp(b"x"), addresses=(bytes(10) + b"\xff\xff" + V4[0], V6[1])))


def fragments():
    def received(data):
        return bytes([0, len(data)]) + data

    def split(max, length, fate=0):
        return struct.pack(">BHHB", 1, max, length - 1, fate)

    def piece(index, count, id, data):
        return received(bytes([1, index << 4 | count - 1]) + struct.pack(">H", id) + data)

    def add(name, data):
        seed("fragment", name, data)

    add("one-piece", split(1200, 1000))
    add("two-pieces", split(1162, 1400))
    add("two-pieces-swapped", split(1162, 1400, 1))
    add("sixteen-pieces", split(104, 1600))
    add("one-piece-too-many", split(104, 1601))
    add("no-room", split(4, 1) + split(0, 1))
    add("one-byte-a-piece", split(5, 16))
    add("uneven", split(6, 17) + split(7, 20))
    add("the-largest", split(1200, 9000, 0x43))
    add("the-last-piece-lost", split(1162, 1400, 0x10) * 3)
    add("the-first-piece-twice", split(500, 1400, 0x20))
    add("twice-and-backwards", split(500, 1400, 0x60))
    add("rotated", split(200, 1400, 0x05))
    add("a-lost-piece-gives-way", split(1162, 1400, 0x10) + split(1162, 1400) * 64)
    add("whole-at-once", piece(0, 1, 5, b"whole"))
    add("joined-by-hand", piece(1, 3, 7, b"b") + piece(2, 3, 7, b"c") + piece(0, 3, 7, b"a"))
    add("repeated-piece", piece(0, 2, 7, b"a") * 2 + piece(1, 2, 7, b"b"))
    add("other-count-for-the-id", piece(0, 2, 7, b"a") + piece(1, 3, 7, b"b"))
    add("other-id-in-the-slot", piece(0, 2, 7, b"a") + piece(1, 2, 71, b"b"))
    add("again-after-it-was-whole", (piece(0, 2, 7, b"a") + piece(1, 2, 7, b"b")) * 2)
    add("ids-that-wrap", piece(0, 2, 0xFFFF, b"a") + piece(0, 2, 0, b"a") + piece(1, 2, 0xFFFF, b"b"))
    add("index-beyond-the-count", received(bytes([1, 0x10, 0, 1, 9])))
    add("cut-short", received(bytes([1, 0x01, 0])))
    add("no-piece", received(bytes([1, 0x01, 0, 1])))
    add("other-datagrams", received(b"\0") + received(b"E") + received(b""))


# CBOR (RFC 8949), as far as messages need it.


def head(major, number):
    for size, form in ((24, None), (1 << 8, "B"), (1 << 16, "H"), (1 << 32, "I"), (1 << 64, "Q")):
        if number < size:
            break
    if form is None:
        return bytes([major << 5 | number])
    return bytes([major << 5 | 24 + "BHIQ".index(form)]) + struct.pack(">" + form, number)


def cbor(value):
    match value:
        case bool():
            return b"\xf5" if value else b"\xf4"
        case None:
            return b"\xf6"
        case int():
            return head(0, value) if value >= 0 else head(1, -1 - value)
        case str():
            return head(3, len(value.encode())) + value.encode()
        case bytes():
            return head(2, len(value)) + value
        case list():
            return head(4, len(value)) + b"".join(map(cbor, value))
        case dict():
            return head(5, len(value)) + b"".join(cbor(k) + cbor(v) for k, v in value.items())


def messages():
    def add(name, value):
        seed("message", name, value if isinstance(value, bytes) else cbor(value))

    hello = {0: [1], 1: "roamd 0.1.0", 2: True, 3: 0x1234}
    welcome = {
        0: 1,
        1: "roamd 0.1.0",
        2: "laptop",
        3: ["10.66.0.2/24", "fd66::2/64"],
        4: ["10.0.0.0/8"],
        5: 1400,
        6: True,
        7: ["10.66.0.1"],
        8: ["corp.example"],
        9: ["10.66.0.1", "fd66::1"],
    }
    add("hello", [0, [hello]])
    add("hello-least", [0, [{0: [1], 1: ""}]])
    add("hello-of-a-newer-version", [0, [{**hello, 0: [9, 1], 77: ["new", {0: True}]}]])
    add("hello-without-a-version", [0, [{1: "roamd"}]])
    add("hello-version-too-large", [0, [{**hello, 0: [65536]}]])
    add("hello-that-moves-the-cursor", [0, [{**hello, 1: "\x1b[31mred\n\u202eback"}]])
    add("hello-long-name", [0, [{**hello, 1: "n\u00e9" * 150}]])
    add("hello-instance-largest", [0, [{**hello, 3: 2**64 - 1}]])
    add("hello-twice-the-same-key", cbor([0])[:1].replace(b"\x81", b"\x82") + b"\0\x81\xa2\0\x81\1\0\x81\2")
    add("welcome", [1, [welcome]])
    add("welcome-least", [1, [{0: 1, 1: "", 2: "", 3: [], 4: [], 5: 0}]])
    add("welcome-prefix-too-long", [1, [{**welcome, 3: ["10.66.0.2/33"]}]])
    add("welcome-no-prefix", [1, [{**welcome, 3: ["10.66.0.2"]}]])
    add("welcome-many-routes", [1, [{**welcome, 4: [f"10.{n}.0.0/16" for n in range(64)]}]])
    add("welcome-name-of-control-characters", [1, [{**welcome, 2: "\0\7\r\n\x7f\u2028"}]])
    add("repeat", [2, [{0: 1500}]])
    add("repeat-too-large", [2, [{0: 2**32}]])
    add("repeat-negative", [2, [{0: -1}]])
    add("unknown-message", [99, [{}]])
    add("unknown-message-of-other-shape", [99, "text"])
    add("body-is-no-map", [0, [[1, 2]]])
    add("no-array", {0: hello})
    add("indefinite-lengths", b"\x9f\x00\x9f\xbf\x00\x9f\x01\xff\x01\x7f\x61\x78\xff\xff\xff\xff")
    add("text-is-not-utf8", b"\x82\x00\x81\xa2\x00\x81\x01\x01\x61\xff")
    add("array-of-2-to-the-64", b"\x82\x00\x81\xa2\x00\x9b" + b"\xff" * 8)
    add("text-of-2-to-the-32", b"\x82\x00\x81\xa2\x00\x81\x01\x01\x7a\xff\xff\xff\xff")
    add("deeply-nested", b"\x82\x00\x81\xa1\x18\x40" + b"\x81" * 200 + b"\x00")
    add("tagged", b"\xd9\xd9\xf7" + cbor([2, [{0: 1}]]))
    add("with-bytes-to-spare", cbor([2, [{0: 1}]]) + b"\0")
    add("cut-short", cbor([1, [welcome]])[:40])
    add("empty", b"")


def offloads():
    NONE, TCP4, TCP6, UDP_L4 = 0, 1, 4, 5

    def vnet(kind=NONE, size=0, headers=0, start=None, field=0):
        return struct.pack("<BBHHHH", 0 if start is None else 1, kind, headers, size, start or 0, field)

    def device(header, ip):
        return b"\0" + struct.pack(">H", len(header + ip)) + header + ip

    def network(data):
        return b"\1" + struct.pack(">H", len(data)) + data

    WRITE, INTERLEAVE = b"\2", b"\3"
    BIG = bytes(range(256)) * 12

    def tcp4(size=1000, payload=BIG[:2500], flags=ACK | PSH, options=b"", **more):
        ip = v4(tcp(payload, flags, options=options), **more)
        return device(vnet(TCP4, size, 40 + len(options), 20, 16), ip)

    def tcp6(size=1000, payload=BIG[:2500], flags=ACK, **more):
        return device(vnet(TCP6, size, 60, 40, 16), v6(tcp(payload, flags), **more))

    def udp4(size=500, payload=BIG[:1600], ports=(443, 40000), **more):
        return device(vnet(UDP_L4, size, 28, 20, 6), v4(udp(payload, ports), **more))

    def add(name, data, level=2):
        seed("offload", name, bytes([level]) + data)

    add("whole", device(vnet(), v4(PING)))
    add("checksum-of-tcp", device(vnet(start=20, field=16), v4(tcp(b"hello"))))
    add("checksum-of-udp6", device(vnet(start=40, field=6), v6(udp(b"hello"))))
    add("checksum-in-an-unusual-place", device(vnet(start=20, field=2), v4(PING)))
    add("checksum-beyond-the-end", device(vnet(start=20, field=99), v4(PING)))
    add("checksum-over-the-version", device(vnet(start=0, field=0), v4(PING)))
    add("no-ip-but-like-unchecked", device(vnet(), b"\2" + v4(PING)))
    add("no-ip-but-like-a-fragment", device(vnet(), bytes([1, 1, 0, 0, 9])))
    add("no-ip-with-a-checksum", device(vnet(start=2, field=2), bytes(20)))
    add("nothing-behind-the-header", device(vnet(), b""))
    add("checksum-at-65535", device(vnet(start=0xFFFF, field=0xFFFF), v4(PING)))
    add("tcp4", tcp4())
    add("tcp4-only-checksums", tcp4(), level=0)
    add("tcp4-with-timestamps", tcp4(options=TIMESTAMPS))
    add("tcp4-fin", tcp4(flags=ACK | FIN))
    add("tcp4-cwr", tcp4(flags=ACK | CWR | ECE))
    add("tcp4-identification-wraps", tcp4(id=0xFFFF, df=False))
    add("tcp4-fragmentable", tcp4(df=False))
    add("tcp4-one-byte-each", tcp4(1, b"0123456789"))
    add("tcp4-smaller-than-a-segment", tcp4(1000, b"small"))
    add("tcp4-without-payload", tcp4(1000, b""))
    add("tcp4-size-zero", tcp4(0))
    add("tcp4-called-udp", device(vnet(UDP_L4, 500, 40, 20, 16), v4(tcp(BIG[:1200]))))
    add("tcp6", tcp6())
    add("tcp6-traffic-class", tcp6(traffic=0xB8))
    add("udp4", udp4())
    add("udp4-only-tcp", udp4(), level=1)
    add("udp4-more-than-64", udp4(4, BIG[:600]))
    add("udp4-odd-sizes", udp4(333, BIG[:1001]))
    options = HOP_BY_HOP
    add("udp6-behind-options", device(vnet(UDP_L4, 100, 56, 48, 6), v6(udp(BIG[:350]), extension=options, first=0)))
    add("unknown-kind", device(vnet(3, 100, 28, 20, 6), v4(udp(BIG[:300]))))
    add("ecn-kind", device(vnet(TCP4 | 0x80, 1000, 40, 20, 16), v4(tcp(BIG[:2500], ACK | CWR))))
    add("two-flows-interleaved", udp4() + udp4(ports=(443, 40001)) + INTERLEAVE)
    add("tcp-and-udp-interleaved", tcp4() + udp4() + INTERLEAVE)
    add("both-families", tcp4() + tcp6() + INTERLEAVE)
    add("in-two-batches", tcp4() + WRITE + tcp4())
    add("same-flow-in-two-batches", udp4() + udp4(ports=(9, 9)) + WRITE + udp4() + INTERLEAVE)
    data = [network(b"\2" + v4(tcp(BIG[:100], ACK, 1000 + 100 * n), id=1 + n)) for n in range(4)]
    add("segments-from-the-network", b"".join(data))
    add("segments-out-of-order", data[1] + data[0] + data[3] + data[2])
    add("segment-twice", data[0] + data[1] + data[1] + data[2])
    ack = network(b"\2" + v4(tcp(b"", ACK, 1200)))
    add("acknowledgement-between", data[0] + data[1] + ack + data[2] + data[3])
    whole = network(v4(tcp(BIG[:100], ACK, 1100), partial=False, id=2))
    add("checked-segment-between", data[0] + whole + data[2])
    marked = network(b"\2" + v4(tcp(BIG[:100], ACK, 1100), tos=3, id=2))
    add("congested-segment-between", data[0] + marked + data[2])
    push = network(b"\2" + v4(tcp(BIG[:100], ACK | PSH, 1100), id=2))
    add("push-ends-a-group", data[0] + push + data[2] + data[3])
    short = network(b"\2" + v4(tcp(BIG[:60], ACK, 1100), id=2))
    add("short-segment-ends-a-group", data[0] + short + data[2])
    wrong = v4(udp(BIG[:100]))
    wrong = network(b"\2" + wrong[:24] + b"\0\1" + wrong[26:])
    add("udp-length-that-is-wrong", wrong * 3)
    add("ping-between", data[0] + network(v4(PING)) + data[1])
    add("fragment-between", data[0] + network(v4(udp(b"x"))[:6] + b"\x20" + v4(udp(b"x"))[7:]) + data[1])


def portals():
    def add(name, *lines, end="\r\n\r\n"):
        seed("portal", name, "\r\n".join(lines) + end)

    away = "Location: http://login.hotel.example/"
    add("found", "HTTP/1.1 302 Found", away)
    add("see-other", "HTTP/1.1 303 See Other", away)
    add("temporary-redirect", "HTTP/1.1 307 Temporary Redirect", "location: https://wifi.example/")
    add("moved-for-good", "HTTP/1.1 301 Moved Permanently", away)
    add("permanent-redirect", "HTTP/1.1 308 Permanent Redirect", away)
    add("authentication-required", "HTTP/1.1 511 Network Authentication Required")
    add("authentication-required-1.0", "HTTP/1.0 511 Login", "Content-Length: 0")
    add("to-the-host-asked", "HTTP/1.1 302 Found", "Location: https://roamd.invalid/")
    add("to-a-path", "HTTP/1.1 302 Found", "Location: /login")
    add("without-a-location", "HTTP/1.1 302 Found", "Server: nginx")
    add("two-locations", "HTTP/1.1 302 Found", "Location: /login", away)
    add("empty-location", "HTTP/1.1 302 Found", "Location: ")
    add("location-of-bytes", "HTTP/1.1 302 Found", "Location: http://h\u00f6tel.example/")
    add("location-in-the-body", "HTTP/1.1 302 Found", "", away)
    add("cut-short", "HTTP/1.1 302 Found", away, end="")
    add("cut-in-the-status", "HTTP/1.1 51", end="")
    add("status-alone", "HTTP/1.1 511", end="")
    add("many-headers", "HTTP/1.1 302 Found", *[f"X-{n}: y" for n in range(63)], away)
    add("too-many-headers", "HTTP/1.1 302 Found", *[f"X-{n}: y" for n in range(64)], away)
    add("folded-header", "HTTP/1.1 302 Found", "Location:", " http://login.example/")
    add("space-before-the-colon", "HTTP/1.1 302 Found", "Location : http://login.example/")
    add("empty-lines-in-front", "", "", "HTTP/1.1 302 Found", away)
    add("line-feeds-alone", "HTTP/1.1 302 Found\n" + away + "\n", end="\n")
    add("page", "HTTP/1.1 200 OK", "Content-Type: text/html", "", "<html>hello</html>")
    add("not-modified", "HTTP/1.1 304 Not Modified", away)
    add("http-2", "HTTP/2 302", away)
    add("ssh", "SSH-2.0-OpenSSH_10", end="\r\n")
    add("nothing", "", end="")


def configs():
    for kind in "valid", "invalid":
        for file in sorted((DATA / kind).glob("*.toml")):
            seed("config", file.stem, file.read_bytes())
    least = "role = 'client'\n[server]\naddress = 'vpn.example.net'\npublic-key = '%s'\n" % (
        base64.b64encode(bytes(range(32))).decode()
    )
    seed("config", "key-in-the-file", f"private-key = '{'A' * 43}='\n" + least)
    seed("config", "unprintable-key", least + '"\\u001b[31m\\n" = 1\n')
    seed("config", "unprintable-value", least + '[log]\nlevel = "\\u001b[31m\\n\\u202e"\n')
    seed("config", "quoted-known-key", least + '["tun"]\n"mt\\u0075" = 1300\n')
    seed("config", "dotted-keys", least + "[quic]\ndscp = 1\n[paths]\nprefer = [{ link = 'en*' }]\n")
    seed("config", "dot-in-a-key-at-the-top", '"tun.mtu" = 1300\n' + least)
    seed("config", "dots-in-unknown-keys-at-the-top", '"60.2" = 1\n"a[0].b" = 2\n["x.y"]\n' + least)
    seed("config", "dot-in-a-key", least + '"tun.mtu" = 1300\n"peer[0]" = 1\n')
    seed("config", "not-a-number", least + "[tun]\nmtu = nan\n[paths]\nignore = [inf, 'x']\n")
    seed("config", "dates", least + "[quic]\nidle-timeout = 2026-01-01T00:00:00Z\n")
    seed("config", "huge-duration", least + "[quic]\nidle-timeout = '99999999999999999999y'\n")


def paths():
    (CANDIDATES, RANK, CONNECTED, DISCONNECTED, ANSWERED, MEASURED, REFUSED, SILENT, HEARD) = range(9)
    SEND_FAILED, WOKE, CHOOSE, CHECK, TIMED_OUT, PORTAL, SYMPTOMS, SAMPLED = range(9, 17)
    ACTIVE, SECOND = 0x80, 16

    def all(*paths):
        return CANDIDATES, sum(1 << path for path in paths)

    def answered(path, tens=2):
        return ANSWERED, path | tens << 3

    def chosen(link, pinned=False):
        return CHOOSE, 8 | link | (4 if pinned else 0)

    def rank(path, number):
        return RANK, path | number << 3

    def add(name, *steps, works=0xFF, checks=True):
        data = bytes([checks, works])
        for step in steps:
            kind, operand, pause = (*step, 0, 0)[:3]
            data += bytes([kind, operand, pause])
        seed("paths", name, data)

    two = rank(2, 2), all(0, 2), (CONNECTED, 0), answered(2)
    add("connected", *two)
    add("nothing-works", *two, works=0)
    add("never-connected", all(0, 2), answered(0))
    add("active-gone", *two, all(2))
    add("all-gone", *two, all(), (CHECK, 0, 50))
    add("gone-and-back", *two, all(2), all(0, 2), answered(0))
    add("flapping", *two, *[all(2), all(0, 2), answered(0)] * 5)
    add("better-path-answers", *two[:2], (CONNECTED, 2), answered(0))
    add("better-path-never-answers", *two[:2], (CONNECTED, 2, 60), works=0x04)
    add("silent-and-a-standby-answers", *two, (SILENT, ACTIVE, 6), answered(2))
    add("false-alarm", *two, (SILENT, ACTIVE, 3), (HEARD, ACTIVE))
    add("the-only-path-is-silent", all(0), (CONNECTED, 0), (SILENT, 0, 255), works=0)
    add("refuses-to-send", *two, (SEND_FAILED, ACTIVE))
    add("refuses-to-send-without-a-standby", all(0), (CONNECTED, 0), (SEND_FAILED, ACTIVE), works=0x01)
    add("standby-refused", *two, (REFUSED, 2))
    add("woke", *two, (WOKE, 0, 20))
    add("woke-to-nothing", *two, (WOKE, 0, 20), works=0)
    add("chosen", *two, chosen(1), answered(2))
    add("chosen-link-fails", *two, chosen(1), answered(2), (SILENT, ACTIVE, 6), answered(0), works=0x01)
    add("choice-is-given-back", *two, chosen(1), answered(2), (CHOOSE, 0))
    add("chosen-among-better-ones", rank(4, 1), rank(6, 3), all(0, 4, 6), (CONNECTED, 6), chosen(2), answered(0))
    three = rank(4, 1), rank(6, 3), all(0, 4, 6), (CONNECTED, 6), chosen(2)
    add("two-better-paths-at-once", *three, (SILENT, 6), answered(0), answered(4), (HEARD, 6))
    add("pinned-and-silent", *two, chosen(0, True), (SILENT, ACTIVE, 100), answered(2))
    add("pinned-and-gone", *two, chosen(0, True), all(2), answered(2))
    add("pinned-elsewhere", *two, chosen(1, True), works=0x01)
    faster = all(0, 1, 2), (CONNECTED, 2), answered(ACTIVE, 15), answered(0)
    add("pinned-to-nothing-beside-a-faster-path", chosen(3, True), *faster)
    add("pinned-to-nothing", *two, chosen(3, True))
    add("connected-beside-the-pin", *two, chosen(1, True), (CONNECTED, 0), answered(2))
    add("faster", all(0, 1), (CONNECTED, 0), answered(1, 1), (MEASURED, ACTIVE | 6 << 3))
    add("not-measured", all(0, 1), (CONNECTED, 0), answered(1, 0), (MEASURED, ACTIVE | 6 << 3))
    lossy, bad = (SYMPTOMS, ACTIVE | 8 << 3), (SAMPLED, ACTIVE | 3 << 3)
    good = SAMPLED, 2 | 15 << 3
    add("lossy", *two, lossy, bad, good)
    add("lossy-and-good-again", *two, lossy, bad, good, *[(SAMPLED, 15 << 3, 20)] * 4)
    add("slow", *two, (MEASURED, ACTIVE), (SYMPTOMS, ACTIVE | 13 << 3), good)
    add("narrow", *two, (SYMPTOMS, ACTIVE | 2 << 3), good)
    add("lossy-everywhere", *two, lossy, bad, (SAMPLED, 2 | 3 << 3, 90))
    add("ranks-change", *two, rank(0, 5), rank(2, 1), rank(0, 0))
    add("reconnected-elsewhere", *two, (CONNECTED, 2), (CONNECTED, 0))
    add("disconnected", *two, (DISCONNECTED, 0, 255), (CONNECTED, 2))
    add("connected-to-what-is-not-there", all(2), (CONNECTED, 0))
    add("check-all", *two, (CHECK, 0, 40), (CHECK, 9))
    add("checks-off", *two, (CHECK, 0, 255), works=0x01, checks=False)
    add("stale-standby-is-preferred", all(0, 2), rank(2, 1), (CONNECTED, 2), answered(0), works=0x04, checks=False)
    add("timed-out", *two, (TIMED_OUT, 2), (SILENT, ACTIVE, 6), (TIMED_OUT, 2, 10))
    add("captive-portal", all(0), (CONNECTED, 0), all(0, 2), (TIMED_OUT, 2), (PORTAL, 2, 50), answered(2))
    add("metered", rank(2, 4), all(0, 2), (CONNECTED, 0), answered(2), (CHECK, 0, 255))
    add("pinned-before-it-is-dialed", chosen(1, True), all(0, 2), (CONNECTED, 2), (DISCONNECTED, 0))
    add("everything", *two, rank(5, 1), all(*range(8)), (SILENT, ACTIVE, 10), (WOKE, 0, 200), works=0x20)


def repairs():
    def number(value, back=0):
        return b"\x01" + struct.pack(">I", value)[1:] + struct.pack(">H", back)

    def datagram(*parts):
        data = b"".join(parts)
        return bytes([0, len(data)]) + data

    def comes_next(value):
        return datagram(b"\x05" + struct.pack(">I", value)[1:])

    def missing(*ranges):
        ranges = [struct.pack(">I", first)[1:] + bytes([count, attempt]) for first, count, attempt in ranges]
        return datagram(b"\x04", *ranges)

    def wait(milliseconds):
        return bytes([2, milliseconds])

    def send(count):
        return bytes([3, count])

    def add(name, *steps):
        seed("repair", name, b"".join(steps))

    def resume(exchange, comes_next, *ranges):
        ranges = [struct.pack(">I", first)[1:] + bytes([count]) for first, count in ranges]
        return datagram(bytes([7, exchange]), struct.pack(">I", comes_next)[1:], *ranges)

    moved, asks = b"\x04", b"\x05"

    def acknowledged(milliseconds):
        return bytes([6, milliseconds])

    flow = [number(at, min(at, 1)) for at in range(8)]
    add("in-order", *flow)
    add("path-died", send(8), acknowledged(0), wait(50), send(9), wait(200), moved, asks, resume(1, 8), wait(60), resume(1, 20, (3, 2)))
    add("gap-over-a-switch", *flow[:3], flow[5], moved, asks, wait(20), *flow[3:5], wait(250), resume(129, 4, (0, 255)), number(90), asks)
    add("one-lost", *flow[:3], *flow[4:], wait(3), wait(40), flow[3])
    add("one-given-up", *flow[:3], *flow[4:], wait(200), flow[3])
    add("first-lost", *flow[1:], wait(3), flow[0])
    add("two-lost", *flow[:2], flow[3], *flow[5:], wait(3), flow[4], flow[2])
    add("reordered", flow[0], flow[2], flow[1], flow[4], flow[3])
    add("backwards", *flow[::-1])
    add("duplicates", *flow, *flow)
    add("two-flows", number(0), number(1), number(3, 2), number(4, 2), wait(3), number(2, 2))
    add("tail-lost", *flow[:5], comes_next(8), wait(3), *flow[5:])
    add("wraps", number(0x7FFFFF), number(0xFFFFFE), number(0, 2), wait(3), number(0xFFFFFF, 1))
    add("jump", number(0), number(0x7FFF00, 1), wait(250), wait(250))
    add("jumps-with-followers", *[number(at * 70001, at % 5) for at in range(40)])
    add("the-same-predecessor", number(0), number(2, 1), number(3, 2), number(4, 3), wait(3), number(1))
    add("waits-for-what-never-was", number(5, 9), number(6, 65535))
    add("more-ranges-than-one-request-has", *[number(at * 2) for at in range(400)], wait(4), wait(4))
    add("asked", send(10), missing((2, 3, 1), (8, 9, 2)))
    add("asked-twice", send(10), missing((0, 10, 9)), missing((0, 10, 9)), wait(40), missing((0, 10, 255)))
    add("asked-for-nothing-and-everything", send(255), missing((0, 0, 0), *[(at * 255, 255, 3) for at in range(30)]))


for make in configs, datagrams, fragments, messages, offloads, paths, portals, repairs:
    make()


# Capsules, behind a byte that says how large the pieces are in which they arrive.


def varint(value, length=None):
    length = length or next(n for n in (1, 2, 4, 8) if value < 1 << (8 * n - 2))
    return (value | {1: 0, 2: 1, 4: 2, 8: 3}[length] << (8 * length - 2)).to_bytes(length, "big")


def capsule(kind, value, said=None):
    return varint(kind) + varint(len(value) if said is None else said) + value


for name, stream in {
    "two": capsule(0, b"\0one") + capsule(0, b"\0" + b"2" * 150),
    "unknown-type": capsule(0x17, b"xyz") + capsule(0, b"\0after"),
    "unknown-context": capsule(0, b"\x02xyz") + capsule(0, b"\0after"),
    "too-long": capsule(0, b"\0" + b"x" * 300) + capsule(0, b"\0after"),
    "long-integers": varint(0, 4) + varint(10, 8) + varint(0, 8) + b"ok",
    "empty-payload": capsule(0, b"\0") + capsule(0, b"\0after"),
    "without-context": capsule(0, b"\0first") + capsule(0, b""),
    "half-a-context": capsule(0, b"\x40"),
    "beyond-udp": capsule(0, b"\0", 65529),
    "endless": capsule(0x21, b"xx", 2**62 - 1),
    "cut": capsule(0, b"\0payload")[:-3],
}.items():
    for piece in (1, 255):
        seed("capsule", f"{name}-{piece}", bytes([piece]) + stream)
