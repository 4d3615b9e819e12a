import type { Blob } from './content.js'
import { type Effect, isAbsent, type Key } from './model.js'
import type { Random } from './random.js'
import type { Session } from './sessions.js'
import { GivenUp, type Talk, type TimedReply } from './talk.js'

/** The ways in which clients push blobs. */
const styles = { post: 25, put: 20, stream: 20, chunks: 20, broken: 6, leave: 4 }

/** Times that a client tries to go on with one upload before it finds that odd. */
const mostTries = 6

/** Somewhere to push a blob to. */
export interface Destination {
  readonly repository: string
  /** A repository that may hold the blob already. */
  readonly mountFrom: string | undefined
}

/**
 * Pushes a blob in one of all the ways that clients have.
 * @param keep takes a session that is left open, on purpose or by an error
 * @returns whether the blob is there now
 * @throws GivenUp
 */
export async function uploadBlob(
  talk: Talk,
  random: Random,
  blob: Blob,
  destination: Destination,
  keep: (session: Session, error?: unknown) => void,
): Promise<boolean> {
  const { repository, mountFrom } = destination
  if (mountFrom !== undefined && (await mountBlob(talk, blob, repository, mountFrom, keep))) return true
  const style = random.weighted(styles)
  if (style === 'post') {
    await postWhole(talk, repository, blob, random.chance(0.5))
    return true
  }
  const session = await openSession(talk, repository, blob)
  try {
    if (style === 'leave') {
      await appendSome(talk, random, session, 0)
      keep(session)
      return false
    }
    await sendAll(talk, random, session, style)
    return true
  } catch (error) {
    keep(session, error)
    throw error
  }
}

function blobKey(repository: string, blob: { readonly digest: string }): Key {
  return { kind: 'blob', repository, name: blob.digest }
}

function blobEffects(repository: string, blob: { readonly digest: string }): Effect[] {
  return [{ ...blobKey(repository, blob), value: 'present' }]
}

/** Gives the repository a blob of another one; what the server opens in place of it is left open. */
async function mountBlob(
  talk: Talk,
  blob: Blob,
  repository: string,
  from: string,
  keep: (session: Session) => void,
): Promise<boolean> {
  const path = `/v2/${repository}/blobs/uploads/?mount=${blob.digest}&from=${encodeURIComponent(from)}`
  const request = { method: 'POST', path }
  const reply = await talk.change(request, 201, blobEffects(repository, blob))
  if (reply.status !== 201 && reply.status !== 202) talk.refuse(request, reply, '201 or 202')
  const isMounted = reply.status === 201
  if (!isMounted) keep(toSession(talk, repository, blob, reply))
  const sides = [from, repository].map((name) =>
    talk.model.legal(blobKey(name, blob), reply.span, reply.span),
  )
  if (isMounted && sides.every(isAbsent)) {
    talk.report(`I8 blob ${blob.digest} was mounted from ${from}, which does not hold it`)
  }
  if (!isMounted && sides.some((legal) => !legal.has(undefined))) {
    talk.report(`I1 blob ${blob.digest} cannot be mounted from ${from}, though it is there`)
  }
  return isMounted
}

async function postWhole(talk: Talk, repository: string, blob: Blob, chunked: boolean): Promise<void> {
  const path = `/v2/${repository}/blobs/uploads/?digest=${blob.digest}`
  const request = { method: 'POST', path, body: blob.bytes, chunked }
  const reply = await talk.change(request, 201, blobEffects(repository, blob))
  if (reply.status !== 201) talk.refuse(request, reply, '201')
}

async function openSession(talk: Talk, repository: string, blob: Blob): Promise<Session> {
  const request = { method: 'POST', path: `/v2/${repository}/blobs/uploads/` }
  const reply = await talk.ask(request)
  if (reply.status !== 202) talk.refuse(request, reply, '202')
  return toSession(talk, repository, blob, reply)
}

function toSession(talk: Talk, repository: string, blob: Blob, reply: TimedReply): Session {
  const id = String(reply.headers['docker-upload-uuid'])
  return talk.model.sessions.open({ id, repository, digest: blob.digest, bytes: blob.bytes })
}

/** Sends all bytes of a new session in this style and closes it. */
async function sendAll(
  talk: Talk,
  random: Random,
  session: Session,
  style: keyof typeof styles,
): Promise<void> {
  const size = session.bytes.length
  switch (style) {
    case 'put':
      await finish(talk, session, 0, { chunked: random.chance(0.5) })
      return
    case 'stream':
      await append(talk, session, 0, size, { chunked: true })
      await finish(talk, session, size, { chunked: random.chance(0.3) })
      return
    case 'broken':
      await leaveMidway(talk, random, session)
      await resumeUpload(talk, random, session)
      return
    default: {
      const sent = await appendSome(talk, random, session, 0)
      await sendRest(talk, random, session, sent)
    }
  }
}

/** How a chunk goes out. */
interface ChunkOptions {
  readonly chunked?: boolean
  readonly ranged?: boolean
}

function chunkRequest(session: Session, from: number, to: number, { chunked, ranged }: ChunkOptions) {
  return {
    path: `/v2/${session.repository}/blobs/uploads/${session.id}`,
    body: session.bytes.subarray(from, to),
    // Another connection: another worker may get the next chunk.
    fresh: true,
    ...(chunked === true ? { chunked } : {}),
    ...(ranged === true && to > from ? { headers: { 'Content-Range': `${from}-${to - 1}` } } : {}),
  }
}

/** A few chunks from this place on, one now and then at a wrong place. @returns where they end */
async function appendSome(talk: Talk, random: Random, session: Session, from: number): Promise<number> {
  let at = from
  for (let left = random.int(1, 3); left > 0 && session.bytes.length - at > 8; left--) {
    const to = random.int(at + 2, session.bytes.length - 2)
    if (random.chance(0.1)) await appendWrongly(talk, session, at)
    await append(talk, session, at, to, { ranged: random.chance(0.8), chunked: random.chance(0.2) })
    at = to
    // Any worker knows where it is.
    if (random.chance(0.2)) await askOffset(talk, session)
  }
  return at
}

async function append(
  talk: Talk,
  session: Session,
  from: number,
  to: number,
  how: ChunkOptions,
): Promise<void> {
  const request = { ...chunkRequest(session, from, to, how), method: 'PATCH' }
  const reply = await patch(talk, session, request, to)
  if (reply.status !== 202) talk.refuse(request, reply, '202')
}

async function patch(
  talk: Talk,
  session: Session,
  request: Parameters<Talk['ask']>[0],
  to: number,
): Promise<TimedReply> {
  session.high = Math.max(session.high, to)
  session.usedAt = Date.now()
  const reply = await talk.ask(request)
  if (reply.status === 202) {
    const end = rangeEnd(reply)
    if (end !== to) talk.report(`I1 upload ${session.id} is at ${end} after bytes up to ${to} were accepted`)
    session.low = to
    session.high = to
  }
  return reply
}

/** A chunk that leaves a hole is refused, and nothing is lost with it. */
async function appendWrongly(talk: Talk, session: Session, at: number): Promise<void> {
  const { length } = session.bytes
  const request = {
    ...chunkRequest(session, at + 1, length, { ranged: true }),
    method: 'PATCH',
  }
  const reply = await talk.ask(request)
  if (reply.status !== 416 || rangeEnd(reply) !== at) talk.refuse(request, reply, `416 at ${at}`)
}

/** Bytes that the server says it has; 0 for `0-0`, which one byte would give as well. */
function rangeEnd({ headers }: TimedReply): number {
  const last = Number(/^0-(\d+)$/.exec(String(headers.range))?.[1])
  return last === 0 ? 0 : last + 1
}

/** Closes a session with its last bytes. */
async function finish(talk: Talk, session: Session, from: number, how: ChunkOptions): Promise<void> {
  const reply = await put(talk, session, from, how)
  if (reply.status !== 201) talk.refuse({ method: 'PUT', path: session.id }, reply, '201')
}

async function put(talk: Talk, session: Session, from: number, how: ChunkOptions): Promise<TimedReply> {
  const request = chunkRequest(session, from, session.bytes.length, how)
  const { ending } = session
  session.high = session.bytes.length
  session.usedAt = Date.now()
  session.ending = 'unknown'
  const reply = await talk.change(
    { ...request, method: 'PUT', path: `${request.path}?digest=${session.digest}` },
    201,
    blobEffects(session.repository, session),
  )
  session.ending = reply.status === 201 || reply.status === 400 ? 'done' : ending
  return reply
}

/** Closes the session in one of the ways that clients have, after some bytes are there. */
async function sendRest(talk: Talk, random: Random, session: Session, from: number): Promise<void> {
  const { length } = session.bytes
  if (random.chance(0.5)) {
    await finish(talk, session, from, { ranged: random.chance(0.8) })
    return
  }
  if (from < length) await append(talk, session, from, length, { ranged: true })
  await finish(talk, session, length, {})
}

/**
 * Begins a chunk and leaves in the middle of it, as a client whose line breaks. The chunk says where it goes: the
 * server may come to it only after what the client sends next.
 */
async function leaveMidway(talk: Talk, random: Random, session: Session): Promise<void> {
  const { length } = session.bytes
  const leaveAfter = random.int(2, length)
  const request = { ...chunkRequest(session, 0, length, { ranged: true }), method: 'PATCH', leaveAfter }
  if (leaveAfter === length) return
  session.high = leaveAfter
  session.usedAt = Date.now()
  try {
    await talk.ask(request)
  } catch (error) {
    if (!(error instanceof GivenUp && error.isLost)) throw error
  }
}

/**
 * Goes on with a session where the server says that it is, until it is closed. What its answers may be depends
 * on what became of the last request: a session that may have ended may be gone.
 * @throws GivenUp
 */
export async function resumeUpload(talk: Talk, random: Random, session: Session): Promise<void> {
  let at = await askOffset(talk, session)
  for (let tries = 0; at !== undefined; tries++) {
    if (tries === mostTries) {
      talk.report(`I1 upload ${session.id} could not be ended with ${mostTries} tries`)
      throw new GivenUp(false)
    }
    at = await tryToEnd(talk, random, session, at)
  }
}

/** @returns where the upload is; undefined when there is none any more, which was then found legal */
async function askOffset(talk: Talk, session: Session): Promise<number | undefined> {
  const request = {
    method: 'GET',
    path: `/v2/${session.repository}/blobs/uploads/${session.id}`,
    fresh: true,
  }
  const reply = await talk.ask(request)
  if (reply.status === 404) {
    acceptGone(talk, session)
    return undefined
  }
  if (reply.status !== 204) talk.refuse(request, reply, '204')
  return acceptOffset(talk, session, rangeEnd(reply))
}

/** A request that is still being read may yet add to it: only the lower bound is certain. */
function acceptOffset(talk: Talk, session: Session, offset: number): number {
  const { id, low, high } = session
  if (offset < low || offset > high) {
    talk.report(`I1 upload ${id} is at ${offset}, but ${low} to ${high} bytes were acknowledged or sent`)
  }
  session.low = Math.max(low, offset)
  return offset
}

function acceptGone(talk: Talk, session: Session): void {
  if (!talk.model.sessions.mayBeGone(session)) {
    talk.report(`I1 upload ${session.id} is gone with ${session.low} acknowledged bytes`)
  }
  session.ending = 'done'
}

/**
 * Always says where its bytes go: a request that died may still be at work, and then the offset has moved.
 * @returns where the upload is, when it is still open
 */
async function tryToEnd(
  talk: Talk,
  random: Random,
  session: Session,
  from: number,
): Promise<number | undefined> {
  const { length } = session.bytes
  const isWhole = random.chance(0.5)
  const request = { ...chunkRequest(session, from, length, { ranged: true }), method: 'PATCH' }
  const reply =
    isWhole || from === length
      ? await put(talk, session, from, { ranged: true })
      : await patch(talk, session, request, length)
  if (reply.status === 201) return undefined
  if (reply.status === 202) return length
  if (reply.status === 404) {
    acceptGone(talk, session)
    return undefined
  }
  if (reply.status !== 416)
    talk.refuse({ method: 'PATCH or PUT', path: session.id }, reply, '201, 202 or 416')
  const offset = acceptOffset(talk, session, rangeEnd(reply))
  if (offset === from) talk.report(`I9 upload ${session.id} is held by a request that has died`)
  return offset
}

/** Ends a session without a blob. @throws GivenUp */
export async function cancelUpload(talk: Talk, session: Session): Promise<void> {
  const request = { method: 'DELETE', path: `/v2/${session.repository}/blobs/uploads/${session.id}` }
  const mayBeGone = talk.model.sessions.mayBeGone(session)
  session.ending = 'unknown'
  const reply = await talk.ask(request)
  if (reply.status !== 204 && !(reply.status === 404 && mayBeGone)) talk.refuse(request, reply, '204')
  session.ending = 'done'
}
