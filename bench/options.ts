import { tmpdir } from 'node:os'
import { parseArgs } from 'node:util'

/** What the command line asks for. */
export interface Options {
  readonly help: boolean
  readonly list: boolean
  /** The rows about large registries in place of the others. */
  readonly scale: boolean
  /** Rows to run; all when empty. */
  readonly only: readonly string[]
  readonly dir: string
  readonly json?: string
  readonly selfCheck: boolean
  readonly skipPeer: boolean
  /** The folder of another version of Boathouse, built, that takes the peer's place in every row. */
  readonly against?: string
  readonly full: boolean
  readonly check: boolean
  readonly seconds: number
  readonly memorySeconds: number
  readonly bigPushes: number
  /** Blobs that are collected in the rows about that. */
  readonly garbage: number
  /** Seconds in all that may go into waiting for a quiet machine and taking disturbed samples again. */
  readonly patience: number
  readonly workers?: string
  readonly nodeOptions: readonly string[]
}

export const HELP = `Usage: npm run bench -- [options]

Runs Boathouse and docker-registry side by side and prints one table.

  --only ROW            only this row; may be given several times, or with commas
  --scale               the rows about large registries and long work, and not the others
  --list                print the names of the rows and end
  --dir DIR             put the data folders below DIR (default: the system's temporary folder)
  --json FILE           write all figures to FILE; a bare name goes to bench/results/
  --check               end with status 1 when a goal is missed
  --full                run the peer in every row, also where no goal needs it
  --skip-peer           run Boathouse alone
  --against FOLDER      in place of docker-registry another version of Boathouse, built in FOLDER, in every row
  --self-check          run the peer against itself: every ratio should be about 1
  --seconds N           length of a reading sample (default 4)
  --memory-seconds N    length of the pulls in the memory rows (default 8)
  --big-pushes N        pushes of 1 GiB at once in the last row (default 8; needs N GiB of disk)
  --garbage N           blobs to collect in the rows about that (default 100000)
  --patience N          wait up to N seconds in all for the machine to be quiet, and take
                        disturbed samples again (default 0)
  --workers N           worker processes of Boathouse (default: its own choice)
  --node-options=TEXT   options for the Node that runs Boathouse, such as "--cpu-prof --cpu-prof-dir=DIR"
`

function whole(name: string, text: string, least = 1): number {
  const value = Number(text)
  if (text !== '' && Number.isInteger(value) && value >= least) return value
  throw new Error(`--${name} needs a whole number of at least ${least}, not "${text}"`)
}

/** Reads the command line; throws a sentence for the user when it makes no sense. */
export function parseOptions(args: readonly string[]): Options {
  const { values } = parseArgs({
    args: [...args],
    options: {
      help: { type: 'boolean', default: false },
      list: { type: 'boolean', default: false },
      scale: { type: 'boolean', default: false },
      only: { type: 'string', multiple: true, default: [] },
      dir: { type: 'string', default: tmpdir() },
      json: { type: 'string' },
      'self-check': { type: 'boolean', default: false },
      'skip-peer': { type: 'boolean', default: false },
      against: { type: 'string' },
      full: { type: 'boolean', default: false },
      check: { type: 'boolean', default: false },
      seconds: { type: 'string', default: '4' },
      'memory-seconds': { type: 'string', default: '8' },
      'big-pushes': { type: 'string', default: '8' },
      garbage: { type: 'string', default: '100000' },
      patience: { type: 'string', default: '0' },
      workers: { type: 'string' },
      'node-options': { type: 'string', default: '' },
    },
  })
  return {
    help: values.help,
    list: values.list,
    scale: values.scale,
    only: values.only.flatMap((names) => names.split(',')),
    dir: values.dir,
    ...(values.json === undefined ? {} : { json: values.json }),
    selfCheck: values['self-check'],
    skipPeer: values['skip-peer'],
    ...(values.against === undefined ? {} : { against: values.against }),
    full: values.full || values.against !== undefined,
    check: values.check,
    seconds: whole('seconds', values.seconds),
    memorySeconds: whole('memory-seconds', values['memory-seconds']),
    bigPushes: whole('big-pushes', values['big-pushes']),
    garbage: whole('garbage', values.garbage),
    patience: whole('patience', values.patience, 0),
    ...(values.workers === undefined ? {} : { workers: values.workers }),
    nodeOptions: values['node-options'].split(' ').filter((option) => option !== ''),
  }
}
