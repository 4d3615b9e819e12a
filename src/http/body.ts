import type { IncomingMessage, ServerResponse } from 'node:http'
import { RegistryError } from '../oci/errors.js'
import { hasBody } from './exchange.js'

const expectsContinue = new WeakSet<IncomingMessage>()

/** Remembers that the client waits for `100 Continue` before it sends its body (protocol UP-28). */
export function noteExpectation(request: IncomingMessage): void {
  expectsContinue.add(request)
}

/**
 * Opens the request's body for reading: asks for it, where the client waits to be asked, and destroys the
 * request when nothing arrives for too long while somebody reads. The total time is not limited: a slow line is
 * no fault (protocol T-43).
 * @param idleTimeout milliseconds without a byte
 */
export function openBody(
  request: IncomingMessage,
  response: ServerResponse,
  idleTimeout: number,
): IncomingMessage {
  if (request.destroyed) return request // nobody would tell of its end, and the timer would hold it for ever
  if (expectsContinue.delete(request)) response.writeContinue()
  const timer = setTimeout(() => {
    // A reader that holds the body back (its disk is slow) is not the client's fault.
    if (request.isPaused()) timer.refresh()
    else request.destroy(new RegistryError('REQUEST_TIMEOUT'))
  }, idleTimeout)
  const onData = () => timer.refresh()
  const stop = () => {
    clearTimeout(timer)
    request.off('data', onData)
  }
  request.once('end', stop)
  request.once('close', stop)
  request.pause()
  request.on('data', onData)
  return request
}

/** Whether at least one byte of body comes: a chunked body without any is none (protocol UP-02). */
export async function hasBytes(request: IncomingMessage): Promise<boolean> {
  if (!hasBody(request)) return false
  if (request.headers['content-length'] !== undefined || expectsContinue.has(request)) return true
  if (request.readableLength === 0 && !request.readableEnded && !request.destroyed) {
    await new Promise<void>((resolve) => {
      request.once('readable', resolve)
      request.once('end', resolve)
      request.once('close', resolve)
    })
  }
  if (request.readableLength > 0) return true
  request.resume() // nothing comes, but the end has to be read
  return false
}

/**
 * Reads a whole body into memory.
 * @param limit bytes
 * @param tooLarge thrown when the body is larger; no more of it is read then
 * @throws RegistryError SIZE_INVALID when the connection breaks before its end
 */
export async function readBody(
  body: IncomingMessage,
  limit: number,
  tooLarge: () => RegistryError,
): Promise<Buffer> {
  if (Number(body.headers['content-length'] ?? 0) > limit) throw tooLarge()
  if (body.destroyed) throw cutOff(body.errored) // its end was told before anybody listened
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = []
    let size = 0
    const onData = (chunk: Buffer) => {
      size += chunk.length
      if (size <= limit) {
        chunks.push(chunk)
        return
      }
      body.off('data', onData)
      body.pause()
      reject(tooLarge())
    }
    body.on('data', onData)
    body.once('end', () => resolve(Buffer.concat(chunks, size)))
    body.once('error', (error) => reject(cutOff(error)))
    body.once('close', () => reject(cutOff(undefined)))
    body.resume()
  })
}

function cutOff(cause: unknown): RegistryError {
  if (cause instanceof RegistryError) return cause
  return new RegistryError('SIZE_INVALID', 'the body ended before it was complete', { cause })
}
