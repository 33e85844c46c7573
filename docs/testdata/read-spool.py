#!/usr/bin/env python3
"""Reads a spool of dma by what dma-spool(5) says, and by nothing else.

    read-spool.py SPOOL

prints all recipients and journals as JSON. Text of the spool is a sequence of
octets: each becomes the character of the same number. A name whose message is
not committed has "uncommitted", one that cannot be a message "corrupt" with the
reason; journal lines that say nothing are counted as "damaged".
"""

import errno
import hashlib
import json
import os
import re
import stat
import sys
import zlib

STATES = ["new", "forwarding", "local", "remote", "tempfail", "hold", "permfail", "sent"]
EVENTS = ["queued", "expanded", "delivered", "deferred", "refused", "failed", "noticed", "bounced", "reported", "kept"]
KINDS = ["address", "user", "mailbox", "file", "command"]
KEYS = ["address", "user", "detail", "target", "source", "original", "notify", "orcpt"]

ID = re.compile(r"[0-9]{8}T[0-9]{6}-[0-9a-f]{16}([cbsd]?)")
NAME = re.compile(r"(%s)\.([1-9][0-9]{0,4})-(.*)" % ID.pattern, re.S)
STAMP = re.compile(r"-?[0-9]+\.[0-9]{6}")
NUMBER = re.compile(r"-?[0-9]+")


class Corrupt(Exception):
    """The file cannot be a message, or the line says nothing."""


def need(condition, reason):
    if not condition:
        raise Corrupt(reason)


def crc32(octets):
    return "%08x" % zlib.crc32(octets)


def decode(value):
    """Undoes the encoding of a value, which has exactly one form."""
    text, i = "", 0
    while i < len(value):
        c = value[i]
        if c == "%":
            digits = value[i + 1:i + 3]
            need(re.fullmatch("[0-9A-F]{2}", digits), "a % without two digits")
            c = chr(int(digits, 16))
            need(not "!" <= c <= "~" or c == "%", "%XX for an octet that stands for itself")
            i += 3
        else:
            need("!" <= c <= "~", "an octet that has to be %XX")
            i += 1
        text += c
    return text


def decode_line(value, allowed=""):
    """Decodes a value of an envelope, which has no control character."""
    text = decode(value)
    for c in text:
        need(c >= " " and c != "\x7f" or c in allowed, "a control character")
    return text


def label(recipient):
    kind = recipient["kind"]
    if kind == "address":
        return recipient["address"]
    if kind == "file":
        return recipient["user"] + "=" + recipient["target"]
    if kind == "command":
        return recipient["user"] + "=|" + recipient["target"]
    return recipient["user"]


def file_name(ident, n, text):
    head = "%s.%d-" % (ident, n)
    tail = "".join(c if re.fullmatch(r"[A-Za-z0-9@._+=-]", c) else "%%%02X" % ord(c) for c in text)
    cut = tail[:255 - len(head)]
    if cut != tail:
        cut = re.sub("%.?$", "", cut)
    return head + cut


def read_recipient(words, n, child):
    need(len(words) >= 3 and words[0] == str(n), "a recipient out of order")
    r = {"kind": words[1]}
    need(r["kind"] in KINDS, "an unknown kind of recipient")
    for word in words[2:]:
        key, _, value = word.partition("=")
        need(key in KEYS and key not in r, "an unknown or repeated key")
        r[key] = decode_line(value, "\t" if key == "target" else "")
        need(r[key] != "", "an empty value")
    kind = r["kind"]
    need("address" in r, "a recipient without address")
    need(child or kind == "address", "a recipient that only a child can have")
    need(("user" in r) == (kind != "address"), "a user too many or too few")
    for key in ("target", "source"):
        need((key in r) == (kind in ("file", "command")), "a target or source too many or too few")
    need(r.get("source", "aliases") in ("forward", "aliases"), "an unknown source")
    return r


def read_envelope(text, ident):
    """Reads the fields, from the second line to the empty one."""
    need(text.endswith("\n\n"), "the envelope has no end")
    own = ID.fullmatch(ident).group(1)
    e = {"parents": [], "recipients": []}
    seen, expected = set(), None
    for line in text[:-2].split("\n"):
        need(line != "", "an empty line within the envelope")
        key, _, rest = line.partition(" ")
        need(key in ("to", "parent") or key not in seen, "a field twice")
        seen.add(key)
        if key == "id":
            e["id"] = rest
        elif key == "content":
            m = re.fullmatch("([0-9]{20}) crc32=([0-9a-f]{8})", rest)
            need(m, "content")
            e["content"] = {"length": int(m.group(1)), "crc32": m.group(2)}
        elif key == "arrival":
            need(STAMP.fullmatch(rest), "arrival")
            e["arrival"] = rest
        elif key in ("sender", "envid"):
            e[key] = decode_line(rest)
        elif key in ("uid", "depth"):
            need(NUMBER.fullmatch(rest), key)
            e[key] = int(rest)
        elif key == "body":
            need(rest == "8bit", "body")
            e["body"] = rest
        elif key == "smtputf8":
            need(rest == "", "smtputf8")
            e["smtputf8"] = True
        elif key == "ret":
            need(rest in ("FULL", "HDRS"), "ret")
            e["ret"] = rest
        elif key == "parent":
            need(NAME.fullmatch(rest), "parent")
            e["parents"].append(rest)
        elif key == "recipients":
            need(NUMBER.fullmatch(rest) and 1 <= int(rest) <= 10000, "recipients")
            expected = int(rest)
        elif key == "to":
            n = len(e["recipients"]) + 1
            need(expected is not None and n <= expected, "more recipients than there should be")
            e["recipients"].append(read_recipient(rest.split(" "), n, own == "c"))
        else:
            raise Corrupt("unknown field " + key)
    for key in ("id", "content", "arrival", "sender", "uid"):
        need(key in e, "no " + key)
    need(len(e["recipients"]) == expected, "fewer recipients than there should be")
    need((own != "") == (len(e["parents"]) > 0), "parents and id do not agree")
    return e


def read_message(path, name, owner):
    """Returns what there is to know of a recipient's name; None if it is gone."""
    found = NAME.fullmatch(name)
    need(found and len(name) <= 255, "not the name of a recipient")
    ident, n = found.group(1), int(found.group(3))
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as e:
        need(e.errno not in (errno.ELOOP, errno.EMLINK), "a symbolic link")
        raise
    with open(fd, "rb") as f:
        st = os.fstat(fd)
        need(stat.S_ISREG(st.st_mode), "not a regular file")
        if not st.st_mode & 0o040:
            return {"uncommitted": True}
        need(st.st_mode & 0o777 == 0o640, "a mode that no submitter sets")
        data = f.read()
    first = re.match(rb"dma-message 1 crc32=([0-9a-f]{8}) size=([0-9]{10})\n", data)
    need(first, "the first line")
    size = int(first.group(2))
    need(first.end() == 45 and 45 < size <= min(67108864, len(data)), "the size of the envelope")
    need(crc32(data[28:size]) == first.group(1).decode(), "the checksum of the envelope")
    e = read_envelope(data[45:size].decode("latin-1"), ident)
    need(e["id"] == ident, "the id")
    need(n <= len(e["recipients"]), "no such recipient")
    need(file_name(ident, n, label(e["recipients"][n - 1])) == name, "the name")
    content = data[size:]
    need(len(content) == e["content"]["length"], "the length of the content")
    need(not e["parents"] or st.st_uid == owner, "the owner of the file")
    need(crc32(content) == e["content"]["crc32"], "the checksum of the content")
    return {"id": ident, "n": n, "envelope": e, "content": content.decode("latin-1")}


def numbers(text):
    if text == "-":
        return []
    result = []
    for part in text.split(","):
        m = re.fullmatch("([0-9]+)(?:-([0-9]+))?", part)
        need(m, "the recipients")
        low, high = int(m.group(1)), int(m.group(2) or m.group(1))
        need(1 <= low <= high <= 10000 and (not result or low > result[-1]), "the recipients")
        result.extend(range(low, high + 1))
    return result


def read_line(line):
    text, mark, crc = line.partition(b" #")
    need(mark and crc32(text) == crc.decode("latin-1"), "the checksum")
    words = text.decode("latin-1").split(" ")
    need(len(words) >= 3 and STAMP.fullmatch(words[0]) and words[1] in EVENTS, "the words")
    entry = {"time": words[0], "event": words[1], "recipients": numbers(words[2])}
    for word in words[3:]:
        key, _, value = word.partition("=")
        if key in ("status", "relay", "reply"):
            entry[key] = decode(value)
        elif key == "owner":
            need(re.fullmatch("0|[1-9][0-9]*", value), "owner")
            entry[key] = value
        elif key == "next":
            need(STAMP.fullmatch(value), "next")
            entry[key] = value
        elif key == "duplicate":
            need(value == "possible", "duplicate")
            entry[key] = value
        else:
            need(key == "dsn" and value == "relayed", "an unknown key")
            entry[key] = value
    return entry


def read_journal(data):
    journal = {"entries": [], "damaged": 0}
    lines = data.split(b"\n")
    if lines.pop() != b"":
        journal["damaged"] += 1  # it has no newline
    for line in lines:
        if line == b"":
            continue
        try:
            journal["entries"].append(read_line(line))
        except Corrupt:
            journal["damaged"] += 1
    return journal


def derived(parent, n, letter):
    """The id of a message that dma makes because of recipient n of parent."""
    digits = hashlib.sha256(("%s.%d%s" % (parent, n, letter)).encode()).hexdigest()[:16]
    return parent.partition("-")[0] + "-" + digits + letter


def read_spool(spool):
    owner = os.stat(spool).st_uid
    recipients, journals = [], {}
    for state in STATES:
        for name in sorted(os.listdir(os.path.join(spool, state))):
            if name.startswith("."):
                continue
            try:
                r = read_message(os.path.join(spool, state, name), name, owner)
            except Corrupt as e:
                r = {"corrupt": str(e)}
            if r is None:
                continue
            if r.get("envelope", {}).get("parents"):
                # The ids of dma's own messages follow from their first parent.
                first = min((NAME.fullmatch(p) for p in r["envelope"]["parents"]), key=lambda m: int(m.group(3)))
                r["derived"] = derived(first.group(1), int(first.group(3)), r["id"][-1])
            recipients.append(dict(r, state=state, name=name))
    for name in sorted(os.listdir(os.path.join(spool, "log"))):
        if ID.fullmatch(name):
            path = os.path.join(spool, "log", name)
            with open(path, "rb") as f:
                journals[name] = dict(read_journal(f.read()), due=int(os.stat(path).st_mtime))
    return {"recipients": recipients, "journals": journals}


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: read-spool.py SPOOL")
    assert crc32(b"123456789") == "cbf43926"
    json.dump(read_spool(sys.argv[1]), sys.stdout)
