import { IncomingMessage, ServerResponse } from 'node:http'
import { Socket } from 'node:net'
import t from 'tap'
import { openBody, withBody } from '../src/http/body.js'
import { Intake } from '../src/http/intake.js'
import { RegistryError } from '../src/oci/errors.js'
import { eventually } from './harness.js'

/*
 * Bodies whose client left before anybody asked for them.
 */

function closedRequest(): IncomingMessage {
  const request = new IncomingMessage(new Socket())
  request.on('error', () => undefined)
  request.destroy()
  return request
}

const timers = () => process.getActiveResourcesInfo().filter((name) => name === 'Timeout').length

t.test('R32: a body that closed before it is read ends at once, as one that was cut off', async (t) => {
  const request = closedRequest()
  await eventually('it is closed', () => request.closed)
  const tooLarge = () => new RegistryError('MANIFEST_TOO_LARGE')
  const intake = new Intake(1000, 60_000, () => undefined)
  await t.rejects(
    withBody(request, new ServerResponse(request), { intake, limit: 100, tooLarge }, async () => undefined),
    new RegistryError('SIZE_INVALID', 'the body ended before it was complete'),
  )
  t.equal(intake.bytes, 0, 'and holds no memory')
})

t.test('UP-25: a body that closed before it is opened is not waited for', async (t) => {
  const request = closedRequest()
  await eventually('it is closed', () => request.closed)
  const before = timers()
  t.equal(openBody(request, new ServerResponse(request), 60_000), request)
  t.equal(timers(), before, 'no timer holds it')
})
