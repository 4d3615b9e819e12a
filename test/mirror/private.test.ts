import { randomBytes } from 'node:crypto'
import t from 'tap'
import { as, basic, startRegistry } from '../auth/fixture.js'
import { did, runCommand } from '../commands.js'
import { eventually, type Server } from '../harness.js'
import { startFakeUpstream } from './fake-upstream.js'
import { user } from './fixture.js'
import { mirrorOf } from './pair.js'

/*
 * What needs credentials upstream is not for everybody here: what is enforced and what is explained are the same.
 */

t.test(
  'a private upstream is private here unless granted by name, and access explain says why',
  async (t) => {
    const upstream = await startFakeUpstream(t, { auth: 'basic', user })
    upstream.addImage('team/app', '1', [randomBytes(100)])
    const mirrors = [
      mirrorOf(upstream, { name: 'private.test', bareNames: false, ...user }),
      mirrorOf(upstream, { name: 'shown.test', bareNames: false, ...user, public: true }),
    ]
    const { server, addUser, grant, revoke } = await startRegistry(t, { config: { mirrors } })
    for (const one of ['bob', 'eve']) await addUser(one)
    await addUser('root', { admin: true })
    await grant('anonymous', '**', 'pull')
    await grant('user:bob', '**', 'pull')

    const explain = async (who: string, mirror: string) => {
      const env = { BOATHOUSE_MIRRORS: JSON.stringify(mirrors), BOATHOUSE_AUTH: 'token' }
      const words = ['access', 'explain', who, `${mirror}/team/app`]
      const { stdout, stderr } = await did(t, runCommand(server.data, words, '', { env }))
      return { pull: /^pull: (.*)$/m.exec(stdout)?.[1], stdout, stderr }
    }
    const pull = async (who: string, mirror: string) => {
      const client: Server = who === 'anonymous' ? server : as(server, basic(who))
      return (await client.request('GET', `/v2/${mirror}/team/app/manifests/1`)).status
    }

    const { pull: why, stderr } = await explain('anonymous', 'private.test')
    t.equal(why, 'no: grant pull ** to anonymous does not name private.test, a mirror with credentials')
    t.match(
      stderr,
      /begins with private\.test\/, or the mirror's setting public is true\. .* takes no pushes from anybody/,
    )
    t.match((await explain('eve', 'private.test')).pull, /^no: grant pull \*\* to anonymous does not name/)
    t.match((await explain('bob', 'private.test')).pull, /^yes: .*user:bob/)
    t.equal((await explain('root', 'private.test')).pull, 'yes: user is an admin')
    const shown = await explain('anonymous', 'shown.test')
    t.match(shown.pull, /^yes: .*anonymous/)
    t.match(shown.stderr, /^What shown\.test mirrors takes no pushes from anybody/)

    t.equal(await pull('anonymous', 'private.test'), 401)
    t.not(await pull('eve', 'private.test'), 200, 'who has logged in gets no more than everybody')
    t.equal(await pull('bob', 'private.test'), 200)
    t.equal(await pull('root', 'private.test'), 200)
    t.equal(await pull('anonymous', 'shown.test'), 200)

    await grant('anonymous', 'private.test/team/**', 'pull')
    t.match((await explain('anonymous', 'private.test')).pull, /^yes: .*private\.test\/team\/\*\*.*anonymous/)
    t.match((await explain('eve', 'private.test')).pull, /^yes: .*private\.test\/team\/\*\*.*anonymous/)
    for (const who of ['anonymous', 'eve']) {
      await eventually('the grant counts', async () => (await pull(who, 'private.test')) === 200)
    }
    await revoke('anonymous', 'private.test/team/**', 'pull')
    await eventually('it counts no more', async () => (await pull('eve', 'private.test')) !== 200)
  },
)
