from metabilevel.cli import main

main()
