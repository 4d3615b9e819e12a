import t from 'tap'
import { eventually, everyReplyKeptTheRules, OCI_MANIFEST, RawConnection } from '../harness.js'
import { password, startRegistry } from './fixture.js'

/*
 * Clients that leave while the registry finds out who they are.
 */

t.test('R32: a client that leaves before its manifest is read keeps nobody from stopping', async (t) => {
  const { server, addUser } = await startRegistry(t, { config: { log: { level: 'info' } } })
  await addUser('alice', { admin: true })
  const authorization = `Authorization: Basic ${Buffer.from(`alice:${password}`).toString('base64')}`
  const headers = [authorization, `Content-Type: ${OCI_MANIFEST}`, 'Content-Length: 200']
  const count = 20
  for (let n = 0; n < count; n++) {
    const connection = await RawConnection.open(server)
    await connection.request(`PUT /v2/team/app/manifests/v${n}`, headers)
    connection.close()
  }
  const lines = () => server.logs().filter(({ route, status }) => route === 'putManifest' && status === 499)
  await eventually('the server has seen all of them leave', () => lines().length === count)
  t.same(await server.stop(), { code: 0, signal: null })
})

everyReplyKeptTheRules(t)
