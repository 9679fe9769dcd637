/**
 * Runs a program with a socket as descriptor 3, and takes a descriptor from it: neither runtime
 * can receive one (SCM_RIGHTS), so both sides go through libc. Answers to fusermount3(1) and its
 * `_FUSE_COMMFD`.
 *
 * It blocks the thread for as long as the program runs, which is a few milliseconds.
 */
import { BcacheError } from "../lib/base/errors.ts";
import { type CString, type Libc, O } from "../lib/runtime/libc.ts";

const AF_UNIX = 1;
const SOCK_STREAM = 1;
const SOCK_CLOEXEC = O.CLOEXEC;
const MSG_CMSG_CLOEXEC = 0x4000_0000;
const SOL_SOCKET = 1;
const SCM_RIGHTS = 1;
/** The child's descriptor of the socket. */
const CHILD_SOCKET = 3;
const CHILD_STDERR = 2;
/** posix_spawn_file_actions_t is opaque: 80 bytes in glibc, and room to grow. */
const FILE_ACTIONS_BYTES = 256;
const COMPLAINT_BYTES_MOST = 4096;

export interface RunResult {
  /** What the callback returned. */
  readonly received: number;
  /** The exit status; -1 when it is not known. */
  readonly status: number;
  /** The last line the program wrote to its standard error. */
  readonly complaint: string;
}

/** @param receive is given our end of the socket while the program runs. */
export function runWithSocket(
  libc: Libc,
  command: readonly string[],
  receive: (libc: Libc, socket: number) => number,
): RunResult {
  const sockets = new Int32Array(new ArrayBuffer(8));
  const pipe = new Int32Array(new ArrayBuffer(8));
  const { calls } = libc;
  const socketsAddress = libc.addressOf(new Uint8Array(sockets.buffer));
  if (calls.socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, socketsAddress) < 0) {
    throw new BcacheError("DeviceIo", `socketpair failed (errno ${libc.errno()})`);
  }
  if (calls.pipe2(libc.addressOf(new Uint8Array(pipe.buffer)), O.CLOEXEC) < 0) {
    throw new BcacheError("DeviceIo", `pipe failed (errno ${libc.errno()})`);
  }
  const [ours, theirs] = [sockets[0]!, sockets[1]!];
  const [complaints, complain] = [pipe[0]!, pipe[1]!];
  let pid: number;
  try {
    pid = spawn(libc, command, [[theirs, CHILD_SOCKET], [complain, CHILD_STDERR]]);
  } finally {
    // Only the child may hold these ends, or its death would go unnoticed.
    libc.close(theirs);
    libc.close(complain);
  }
  const received = receive(libc, ours);
  const complaint = readAll(libc, complaints);
  libc.close(complaints);
  libc.close(ours);
  return { received, status: wait(libc, pid), complaint };
}

function spawn(
  libc: Libc,
  command: readonly string[],
  descriptors: readonly (readonly [from: number, to: number])[],
): number {
  const { calls } = libc;
  const actions = new Uint8Array(new ArrayBuffer(FILE_ACTIONS_BYTES));
  const actionsAddress = libc.addressOf(actions);
  calls.posix_spawn_file_actions_init(actionsAddress);
  for (const [from, to] of descriptors) {
    calls.posix_spawn_file_actions_adddup2(actionsAddress, from, to);
  }
  const pid = new Int32Array(new ArrayBuffer(8));
  const path = libc.cString(command[0]!);
  const argv = pointers(libc, command.map((text) => libc.cString(text)));
  const environment = [`_FUSE_COMMFD=${CHILD_SOCKET}`, "PATH=/usr/bin:/bin", "LC_ALL=C"];
  const envp = pointers(libc, environment.map((text) => libc.cString(text)));
  const errno = calls.posix_spawn(
    libc.addressOf(new Uint8Array(pid.buffer)),
    path.address,
    actionsAddress,
    null,
    libc.addressOf(argv.bytes),
    libc.addressOf(envp.bytes),
  );
  calls.posix_spawn_file_actions_destroy(actionsAddress);
  if (errno !== 0) {
    throw new BcacheError("DeviceIo", `${command[0]}: cannot be started (errno ${errno})`);
  }
  return pid[0]!;
}

/** A NULL-terminated array of pointers, which keeps what it points to. */
function pointers(
  libc: Libc,
  strings: readonly CString[],
): { bytes: Uint8Array<ArrayBuffer>; strings: readonly CString[] } {
  const words = new Uint32Array(new ArrayBuffer((strings.length + 1) * 8));
  strings.forEach((text, index) => putAddress(words, index * 2, libc.addressValue(text.address)));
  return { bytes: new Uint8Array(words.buffer), strings };
}

function putAddress(words: Uint32Array, at: number, address: number): void {
  words[at] = address % 0x1_0000_0000;
  words[at + 1] = Math.floor(address / 0x1_0000_0000);
}

function wait(libc: Libc, pid: number): number {
  const status = new Int32Array(new ArrayBuffer(8));
  // A failure means that the runtime reaped it first.
  if (libc.calls.waitpid(pid, libc.addressOf(new Uint8Array(status.buffer)), 0) < 0) return -1;
  return (status[0]! >> 8) & 0xff;
}

function readAll(libc: Libc, fd: number): string {
  const buffer = new Uint8Array(new ArrayBuffer(COMPLAINT_BYTES_MOST));
  let text = "";
  for (;;) {
    const length = libc.read(fd, buffer);
    if (length <= 0) break;
    text = (text + new TextDecoder().decode(buffer.subarray(0, length)))
      .slice(-COMPLAINT_BYTES_MOST);
  }
  return text.trim().split("\n").pop() ?? "";
}

/** One descriptor, closed on exec, from a socket; -1 when the other side closed it without. */
export function receiveDescriptor(libc: Libc, socket: number): number {
  const byte = new Uint8Array(new ArrayBuffer(8));
  // struct iovec { base, len }, struct cmsghdr { len, level, type } and a descriptor, padded to 24.
  const iovec = new Uint32Array(new ArrayBuffer(16));
  putAddress(iovec, 0, libc.addressValue(libc.addressOf(byte)));
  iovec[2] = 1;
  const control = new Int32Array(new ArrayBuffer(24));
  // struct msghdr { name, namelen, iov, iovlen, control, controllen, flags }, 8 bytes each.
  const message = new Uint32Array(new ArrayBuffer(56));
  putAddress(message, 4, libc.addressValue(libc.addressOf(new Uint8Array(iovec.buffer))));
  message[6] = 1;
  putAddress(message, 8, libc.addressValue(libc.addressOf(new Uint8Array(control.buffer))));
  message[10] = control.byteLength;
  const address = libc.addressOf(new Uint8Array(message.buffer));
  const length = libc.calls.recvmsg(socket, address, MSG_CMSG_CLOEXEC);
  if (length <= 0 || message[10]! < 20) return -1;
  if (control[2] !== SOL_SOCKET || control[3] !== SCM_RIGHTS) return -1;
  return control[4]!;
}
